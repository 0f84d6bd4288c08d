import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import sacrebleu.dataset
import sacrebleu.dataset.base
from sacrebleu.dataset.fake_sgml import FakeSGMLDataset

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.recipe import Corpus, Source
from fairseq_sharing.preparation.sources import find_texts, identity, refuse_same_names

LANGUAGES = {"source": "en", "target": "de"}
MEMBERS = {
    "test/x-src.en.sgm": "<srcset>\n<doc>\n<seg id=1>One  &amp; two.</seg>\n<seg id=1>Three</seg>\n</doc>",
    "test/x-ref.de.sgm": "<refset>\n<doc>\n<seg id=1>Eins &amp; zwei.</seg>\n<seg id=1>Drei</seg>\n</doc>",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Make an archive with the name that sacreBLEU uses for its downloads."""
    path = tmp_path / "mirror" / "toy_full.test.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as file:
        for name, content in MEMBERS.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode())
            file.addfile(entry, io.BytesIO(content.encode()))
    return path


def test_sacrebleu_unpacks_its_sets_from_a_mirror(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sacrebleu.dataset.base, "SACREBLEU_DIR", str(tmp_path / "cache"))
    known = FakeSGMLDataset(
        "toy/full",
        data=["https://example.invalid/test.tgz"],
        md5=[hashlib.md5(archive.read_bytes()).hexdigest()],
        langpairs={"en-de": list(MEMBERS)},
    )
    monkeypatch.setitem(sacrebleu.dataset.DATASETS, "toy/full", known)
    corpus, mirror = Corpus({}, 2, "toy/full"), str(archive.parent)
    assert identity(corpus, LANGUAGES, tmp_path, mirror) == {"sacrebleu": f"toy/full {known.md5[0]}"}
    source, reference = find_texts(corpus, LANGUAGES, tmp_path, mirror)
    assert list(source.lines()) == ["One &amp; two.", "Three"]
    assert list(reference.lines()) == ["Eins &amp; zwei.", "Drei"]
    with pytest.raises(SharingError, match="toy/full has no language pair de-en; allowed: en-de"):
        find_texts(corpus, {"source": "de", "target": "en"}, tmp_path, mirror)
    with pytest.raises(SharingError, match="'toy' is not a test set of sacreBLEU; list them with: sacrebleu --list"):
        find_texts(Corpus({}, 2, "toy"), LANGUAGES, tmp_path, mirror)


@pytest.mark.parametrize(("damage", "message"), [("absent", "No such file"), ("changed", "wrong MD5")])
def test_a_set_that_cannot_be_fetched_is_reported(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, message: str
):
    monkeypatch.setattr(sacrebleu.dataset.base, "SACREBLEU_DIR", str(tmp_path / "cache"))
    known = FakeSGMLDataset(
        "toy/full", data=["https://x.invalid/test.tgz"], md5=["0"], langpairs={"en-de": list(MEMBERS)}
    )
    monkeypatch.setitem(sacrebleu.dataset.DATASETS, "toy/full", known)
    if damage == "absent":
        archive.unlink()
    with pytest.raises(SharingError, match=f"toy/full cannot be fetched from file:.*toy_full.test.tgz: .*{message}"):
        find_texts(Corpus({}, 2, "toy/full"), LANGUAGES, tmp_path, str(archive.parent))


def test_both_sides_can_be_in_one_archive_of_unknown_checksum(archive: Path, tmp_path: Path):
    sources = [Source(url=f"http://x.invalid/{archive.name}", sha256="unknown", member=member) for member in MEMBERS]
    corpus = Corpus(dict(zip(("en", "de"), sources, strict=True)))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    expected = {lang: f"{digest} {member}" for lang, member in zip(("en", "de"), MEMBERS, strict=True)}
    assert identity(corpus, LANGUAGES, tmp_path, str(archive.parent)) == expected
    texts = find_texts(corpus, LANGUAGES, tmp_path, str(archive.parent))
    assert [next(text.lines()) for text in texts] == ["<srcset>", "<refset>"]
    assert texts[0].name == "x-src.en.sgm"


def test_files_with_equal_names_and_unknown_checksums_are_refused_with_a_mirror():
    def corpus(*urls: str, sha256: str = "unknown") -> Corpus:
        return Corpus({lang: Source(url=url, sha256=sha256) for lang, url in zip(("en", "de"), urls, strict=True)})

    same = "http://x.invalid/a.tgz"
    refuse_same_names([corpus(same, same), corpus("http://x.invalid/b.tgz", "http://x.invalid/c.tgz?v=1")])
    refuse_same_names([corpus("http://x.invalid/en/text", "http://x.invalid/de/text", sha256="0" * 64)])
    with pytest.raises(
        SharingError, match=r"--mirror: http://x\.invalid/en/text and .*de/text have the same file name"
    ):
        refuse_same_names([corpus("http://x.invalid/en/text", "http://x.invalid/de/text")])


def test_a_changed_file_in_a_local_mirror_is_refused(tmp_path: Path):
    """Its checksum was recorded at the first preparation, so nothing else would notice the change."""
    mirror, folder = tmp_path / "mirror", tmp_path / "download"
    mirror.mkdir()
    (mirror / "a.en").write_text("one\n")
    corpus = Corpus({"en": Source(url="https://example.invalid/a.en", sha256="unknown")}, 1)
    first = identity(corpus, {"source": "en"}, folder, str(mirror))
    assert first == {"en": hashlib.sha256(b"one\n").hexdigest()}
    assert identity(corpus, {"source": "en"}, folder, str(mirror)) == first
    assert identity(corpus, {"source": "en"}, folder, None) == first
    (mirror / "a.en").write_text("two\n")
    with pytest.raises(SharingError, match=rf"a\.en: SHA-256 is {hashlib.sha256(b'two' + bytes([10])).hexdigest()}"):
        identity(corpus, {"source": "en"}, folder, mirror.as_uri())
