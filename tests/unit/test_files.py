import errno
import gzip
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fairseq_sharing import files
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write, inside, read_lines, replace_folder, sha256, write_text


def test_lines_end_at_line_feeds_only(tmp_path: Path):
    path = tmp_path / "text"
    path.write_bytes("a\u2028b\x85c\x0bd\x1ce\rf\n\nlast".encode())
    assert list(read_lines(path)) == ["a\u2028b\x85c\x0bd\x1ce\rf", "", "last"]


def test_gzip_is_decompressed(tmp_path: Path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert list(read_lines(path)) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ok\nno\xff!\n", r"text, line 2: not UTF-8 \(byte 0xff at position 3\)"),
        ("ä\nü\n".encode("latin-1"), r"text, line 1: not UTF-8 \(byte 0xe4 at position 1\)"),
        ("ab\n".encode("utf-16-le"), "text, line 1: contains a NUL byte"),
    ],
)
def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(SharingError, match=message):
        list(read_lines(path))


def test_damaged_archives_and_missing_files_are_refused(tmp_path: Path):
    whole = gzip.compress(b"one\ntwo\n" * 100)
    for number, content in enumerate([whole[:-10], b"not gzip", whole[:20] + b"\0\0\0\0" + whole[24:]]):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(content)
        with pytest.raises(SharingError, match=f"{number}.gz: damaged archive"):
            list(read_lines(path))
    with pytest.raises(SharingError, match="absent: no such file"):
        list(read_lines(tmp_path / "absent"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "folder" / "file"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_two_writers_of_one_file_never_mix_and_the_last_one_wins(tmp_path: Path):
    path = tmp_path / "file"
    with atomic_write(path) as first:
        first.write(b"first" * 1000)
        with atomic_write(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" * 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path):
    write_text(tmp_path / "ours", "a\n\u2028\r\n")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").read_bytes() == b"a\n\xe2\x80\xa8\r\n"
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sha256_of_a_known_text(tmp_path: Path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-4 example
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("kind", ["tgz", "tar", "zip"])
def test_members_of_archives_are_read_without_unpacking(tmp_path: Path, kind: str):
    archive = tmp_path / f"corpus.{kind}"
    contents = {"a/train.en": b"one\ntwo\n", "a/train.de.gz": gzip.compress("\u00e4\n".encode())}
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in contents.items():
                file.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tgz" else "w") as file:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    assert list(read_lines(archive, "a/train.de.gz")) == ["\u00e4"]
    assert list(read_lines(archive, "a/train.en")) == ["one", "two"]
    with pytest.raises(SharingError, match=rf"corpus\.{kind}: contains no file train\.en"):
        list(read_lines(archive, "train.en"))
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(SharingError, match=rf"corpus\.{kind}: a/train\.en: damaged archive"):
        list(read_lines(archive, "a/train.en"))


@pytest.mark.parametrize("name", ["a", "a/b", "./a", "a//b", "..a/b..", "a b", "\u00fc\u3000", "link/a", "absent/a"])
def test_names_inside_a_folder_are_joined_to_it(tmp_path: Path, name: str):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert inside(tmp_path, name) == tmp_path / name


OUTSIDE = [
    "",
    ".",
    "/",
    "/etc/passwd",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    "a\0b",
    "\ud800",
    "out/a",
    "out",
    "loose",
    5,
    None,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_of_a_folder_are_refused(tmp_path: Path, name: object):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "loose").symlink_to(tmp_path / "absent")
    with pytest.raises(SharingError, match=r"not inside .*folder; allowed: relative paths"):
        inside(folder, name)


def test_a_folder_may_itself_be_a_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path / "link", "a") == tmp_path / "link" / "a"


def test_writing_follows_no_link_at_the_temporary_name(tmp_path: Path):
    (tmp_path / "precious").write_bytes(b"kept")
    (tmp_path / "file.tmp").symlink_to("precious")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_bytes() == b"kept"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_reading_a_member_writes_nothing_and_follows_no_link(tmp_path: Path, kind: str):
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("secret\n")
    archive = folder / f"corpus.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("../evil", "text\n")
    else:
        with tarfile.open(archive, "w:gz") as file:
            entry = tarfile.TarInfo("../evil")
            entry.size = 5
            file.addfile(entry, io.BytesIO(b"text\n"))
            for name, link in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = link, str(secret)
                file.addfile(entry)
    assert list(read_lines(archive, "../evil")) == ["text"]
    for name in ("link", "hard", "folder"):
        with pytest.raises(SharingError, match=f"contains no file {name}"):
            list(read_lines(archive, name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == [archive.name, "folder", "secret"]


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "gz"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files, "_FREE_EXPANSION", 1 << 20)
    path, content = tmp_path / f"a.{suffix}", b"a\n" * (1 << 22)
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("text", content)
    elif suffix == "gz":
        path.write_bytes(gzip.compress(content))
    else:
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo("text")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    lines = files.read_lines(path, "" if suffix == "gz" else "text")
    with pytest.raises(SharingError, match=r"unpacks to more than 1 MiB, 100 times the file's size"):
        assert sum(1 for _ in lines) < 1 << 20


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    (tmp_path / "a").write_bytes(b"x\n" + b"a" * 5000)
    with pytest.raises(SharingError, match=r"a, line 2: longer than 0 MiB; allowed: lines of text$"):
        list(files.read_lines(tmp_path / "a"))
    (tmp_path / "a").write_bytes(b"a" * 999 + b"\n" + b"b" * 1000)
    assert [len(line) for line in files.read_lines(tmp_path / "a")] == [999, 1000]


def test_temporary_files_of_killed_processes_are_removed_and_those_of_running_ones_kept(tmp_path, monkeypatch):
    stale, other = tmp_path / "a.0123abcd.tmp", tmp_path / "b.0123abcd.tmp"
    for path in (stale, other):
        path.write_bytes(b"half")
    with files.atomic_write(tmp_path / "a") as running:
        assert stale.exists(), "it may be that of a process that is just starting"
        for path in tmp_path.iterdir():
            os.utime(path, (1, 1))
        files.write_text(tmp_path / "a", "second")
        assert not stale.exists()
        assert Path(running.name).exists()
        running.write(b"first")
    assert (tmp_path / "a").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.0123abcd.tmp"]


def test_folders_of_killed_processes_are_removed_and_a_failed_one_leaves_the_old(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    stale = tmp_path / "a.0123abcd.tmp"
    (stale / "b").mkdir(parents=True)
    os.utime(stale, (1, 1))

    def fail(new: Path) -> None:
        (new / "new").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.temporary_folder(tmp_path / "a") as new:
        fail(new)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/old"]
    with files.temporary_folder(tmp_path / "a") as new:
        (new / "new").touch()
        files.replace_folder(new, tmp_path / "a")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/new"]


def test_folders_that_are_replaced_at_once_are_whole_and_leave_nothing_else(tmp_path):
    target = tmp_path / "target"

    def replace(name: str) -> None:
        for number in range(100):
            new = tmp_path / f"{name}{number}"
            new.mkdir()
            for file in ("a", "b"):
                (new / file).write_text(name)
            replace_folder(new, target)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(replace, ["one", "two"]))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "target"]
    assert (target / "a").read_text() == (target / "b").read_text()


def test_a_folder_that_cannot_be_replaced_keeps_its_content(tmp_path, monkeypatch):
    target, new = tmp_path / "target", tmp_path / "new"
    for folder in (target, new):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    stock = Path.rename

    def rename(self: Path, other: Path) -> Path:
        if self == new and not target.exists():
            raise OSError(errno.EIO, "Input/output error")
        return stock(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(new, target)
    assert (target / "file").read_text() == "target"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "target"]
