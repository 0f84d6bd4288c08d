"""Find the texts of a recipe: local files, downloads, archive members and test sets of sacreBLEU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import read_lines, sha256
from fairseq_sharing.preparation.fetch import UNKNOWN, fetch, file_name, local_path, recorded_digest
from fairseq_sharing.preparation.markup import sentences
from fairseq_sharing.preparation.recipe import Corpus, Source


@dataclass(frozen=True)
class Text:
    """A local text: a file, or a member of an archive."""

    path: Path
    member: str = ""
    markup: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """File name without folders."""
        return Path(self.member).name or self.path.name

    def lines(self) -> Iterator[str]:
        """Read the sentences; see files.read_lines and markup.sentences."""
        return sentences(read_lines(self.path, self.member), self.markup)


def identity(corpus: Corpus, languages: Mapping[str, str], folder: Path, mirror: str | None) -> dict[str, str]:
    """Identify the texts of a corpus; fetch only texts whose checksum is not yet known.

    Args:
        corpus: texts of a recipe.
        languages: language code per side.
        folder: download folder.
        mirror: see `fetch`.

    Returns:
        The checksum of each text by language, with its member name in an archive.
    """
    if corpus.sacrebleu:
        return {"sacrebleu": " ".join([corpus.sacrebleu, *_sacrebleu_set(corpus.sacrebleu).md5])}
    return {lang: _identity(corpus.texts[lang], folder, mirror) for lang in languages.values()}


def _identity(source: Source, folder: Path, mirror: str | None) -> str:
    digest: str | None = source.sha256 or sha256(Path(source.path))
    if digest == UNKNOWN:
        # A local mirror is always read, so that a changed file in it is refused instead of ignored.
        local = mirror is not None and local_path(mirror) is not None
        if local or recorded_digest(source.location, folder) is None:
            fetch(source.location, UNKNOWN, folder, mirror)
        digest = recorded_digest(source.location, folder)
    return " ".join(filter(None, (digest, source.member, source.markup)))


def refuse_same_names(corpora: Iterable[Corpus]) -> None:
    """Reject texts that a mirror would confuse, because it identifies files only by name.

    Args:
        corpora: all texts of a recipe.

    Raises:
        SharingError: two files without a checksum have the same name.
    """
    locations: dict[str, str] = {}
    for source in (source for corpus in corpora for source in corpus.texts.values() if source.sha256 == UNKNOWN):
        name = file_name(source.location)
        other = locations.setdefault(name, source.location)
        if other != source.location:
            raise SharingError(
                f"--mirror: {other} and {source.location} have the same file name {name}; "
                "add the SHA-256 of both to the recipe, or omit --mirror"
            )


def find_texts(corpus: Corpus, languages: Mapping[str, str], folder: Path, mirror: str | None) -> list[Text]:
    """Find the texts of a corpus; fetch missing ones.

    Args:
        corpus: texts of a recipe.
        languages: language code per side.
        folder: download folder.
        mirror: see `fetch`.

    Returns:
        One text per side.

    Raises:
        SharingError: a text cannot be fetched or has the wrong checksum.
    """
    if corpus.sacrebleu:
        return [Text(path) for path in _sacrebleu_files(corpus.sacrebleu, languages, mirror)]
    sources = [corpus.texts[lang] for lang in languages.values()]
    # Both sides are often in the same large archive, which is fetched once.
    fetched = {
        (location, digest): fetch(location, digest, folder, mirror)
        for location, digest in {(source.location, source.sha256) for source in sources if source.location}
    }
    return [Text(fetched.get((s.location, s.sha256), Path(s.path)), s.member, s.markup) for s in sources]


def _sacrebleu_set(name: str) -> Any:
    from sacrebleu.dataset import DATASETS

    if name not in DATASETS:
        raise SharingError(f"sacrebleu: {name!r} is not a test set of sacreBLEU; list them with: sacrebleu --list")
    return DATASETS[name]


def _sacrebleu_files(name: str, languages: Mapping[str, str], mirror: str | None) -> list[Path]:
    """Let sacreBLEU fetch, verify and unpack a test set in its own cache.

    In a mirror, the archive has the same name as in that cache, such as wmt14_full.test-full.tgz.
    """
    dataset, pair = _sacrebleu_set(name), "-".join(languages.values())
    if pair not in dataset.langpairs:
        raise SharingError(
            f"sacrebleu: {name} has no language pair {pair}; allowed: {', '.join(sorted(dataset.langpairs))}"
        )
    if mirror is not None:
        local, archive = local_path(mirror), f"{name.replace('/', '_')}.{dataset.data[0].rsplit('/', 1)[-1]}"
        folder = mirror.rstrip("/") if local is None else local.resolve().as_uri()
        dataset = type(dataset)(name, data=[f"{folder}/{archive}"], md5=dataset.md5, langpairs=dataset.langpairs)
    try:
        return [Path(path) for path in dataset.get_files(pair)[:2]]
    except (OSError, SystemExit) as error:
        reason = "wrong MD5" if isinstance(error, SystemExit) else str(getattr(error, "reason", error))
        raise SharingError(f"sacrebleu: {name} cannot be fetched from {dataset.data[0]}: {reason}") from None
