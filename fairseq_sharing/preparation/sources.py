"""Find the texts that a recipe names: local files, downloads, files inside archives, test sets of sacreBLEU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import read_lines, sha256
from fairseq_sharing.preparation.fetch import UNKNOWN, fetch, file_name, local_path, recorded_digest
from fairseq_sharing.preparation.recipe import Corpus, Source


@dataclass(frozen=True)
class Text:
    """A text that is at hand: a file, or a member of an archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return Path(self.member).name or self.path.name

    def lines(self) -> Iterator[str]:
        """Read the lines; see files.read_lines."""
        return read_lines(self.path, self.member)


def identity(corpus: Corpus, languages: Mapping[str, str], folder: Path, mirror: str | None) -> dict[str, str]:
    """Tell what a corpus is made of, fetching only what has no checksum yet.

    Args:
        corpus: texts of a recipe.
        languages: language code by side.
        folder: where downloads are kept.
        mirror: as for fetch.

    Returns:
        The checksum of each text by language, with its name in an archive; another one means another text.
    """
    if corpus.sacrebleu:
        return {"sacrebleu": " ".join([corpus.sacrebleu, *_sacrebleu_set(corpus.sacrebleu).md5])}
    return {lang: _identity(corpus.texts[lang], folder, mirror) for lang in languages.values()}


def _identity(source: Source, folder: Path, mirror: str | None) -> str:
    digest: str | None = source.sha256 or sha256(Path(source.path))
    if digest == UNKNOWN:
        if recorded_digest(source.location, folder) is None:
            fetch(source.location, UNKNOWN, folder, mirror)
        digest = recorded_digest(source.location, folder)
    return f"{digest} {source.member}".strip()


def refuse_same_names(corpora: Iterable[Corpus]) -> None:
    """Refuse texts that a mirror, which knows files by name alone, would mix up.

    Args:
        corpora: all texts of a recipe.

    Raises:
        SharingError: two files without checksum have the same name.
    """
    locations: dict[str, str] = {}
    for source in (source for corpus in corpora for source in corpus.texts.values() if source.sha256 == UNKNOWN):
        name = file_name(source.location)
        other = locations.setdefault(name, source.location)
        if other != source.location:
            raise SharingError(
                f"--mirror: {other} and {source.location} have the same file name {name}; "
                "give the SHA-256 of both in the recipe, or leave --mirror out"
            )


def find_texts(corpus: Corpus, languages: Mapping[str, str], folder: Path, mirror: str | None) -> list[Text]:
    """Find the texts of a corpus, fetching what is not there yet.

    Args:
        corpus: texts of a recipe.
        languages: language code by side.
        folder: where downloads are kept.
        mirror: as for fetch.

    Returns:
        One text a side.

    Raises:
        SharingError: when one cannot be had, or is another than expected.
    """
    if corpus.sacrebleu:
        return [Text(path) for path in _sacrebleu_files(corpus.sacrebleu, languages, mirror)]
    sources = [corpus.texts[lang] for lang in languages.values()]
    # Both sides are often in one archive, which is large.
    fetched = {
        (location, digest): fetch(location, digest, folder, mirror)
        for location, digest in {(source.location, source.sha256) for source in sources if source.location}
    }
    return [Text(fetched.get((s.location, s.sha256), Path(s.path)), s.member) for s in sources]


def _sacrebleu_set(name: str) -> Any:
    from sacrebleu.dataset import DATASETS

    if name not in DATASETS:
        raise SharingError(f"sacrebleu: {name!r} is no test set of sacreBLEU; sacrebleu --list shows them")
    return DATASETS[name]


def _sacrebleu_files(name: str, languages: Mapping[str, str], mirror: str | None) -> list[Path]:
    """Let sacreBLEU fetch, check and unwrap a test set, into its own cache that it also scores from.

    In a mirror its archive has the name that it has there, such as wmt14_full.test-full.tgz.
    """
    dataset, pair = _sacrebleu_set(name), "-".join(languages.values())
    if pair not in dataset.langpairs:
        raise SharingError(f"sacrebleu: {name} has no language pair {pair}")
    if mirror is not None:
        local, archive = local_path(mirror), f"{name.replace('/', '_')}.{dataset.data[0].rsplit('/', 1)[-1]}"
        folder = mirror.rstrip("/") if local is None else local.resolve().as_uri()
        dataset = type(dataset)(name, data=[f"{folder}/{archive}"], md5=dataset.md5, langpairs=dataset.langpairs)
    try:
        return [Path(path) for path in dataset.get_files(pair)[:2]]
    except (OSError, SystemExit) as error:
        reason = "wrong MD5" if isinstance(error, SystemExit) else str(getattr(error, "reason", error))
        raise SharingError(f"sacrebleu: {name} cannot be fetched from {dataset.data[0]}: {reason}") from None
