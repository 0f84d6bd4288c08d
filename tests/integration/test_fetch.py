"""Downloads from a real server on this machine, which breaks off, cannot resume or has another file."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation import fetch as fetching


class Server(ThreadingHTTPServer):
    """Serves byte strings by path; breaks off after ``limit`` bytes for the first ``breaks`` requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.breaks = 0
        self.limit = 1000
        self.resumable = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.resumable else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        if self.server.breaks:
            self.server.breaks -= 1
            part = part[: self.server.limit]
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


CONTENT = bytes(range(256)) * 20
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_broken_download_resumes_where_it_stopped(server: Server, tmp_path: Path):
    server.files["/a/data.gz"] = CONTENT
    server.breaks = 2
    path = fetching.fetch(f"{server.url}/a/data.gz", DIGEST, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["data.gz"]
    fetching.fetch(f"{server.url}/a/data.gz", DIGEST, tmp_path)
    assert len(server.ranges) == 3, "a complete file was asked for again"


def test_a_later_run_goes_on_from_what_an_earlier_one_left(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    (tmp_path / "data.gz.part").write_bytes(CONTENT[:3000])
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000-"]
    (tmp_path / "data.gz").replace(tmp_path / "data.gz.part")
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"other" * 100, CONTENT + b"more"])
def test_what_is_left_of_another_file_is_fetched_anew(server: Server, tmp_path: Path, left: bytes):
    server.files["/data.gz"] = CONTENT
    (tmp_path / "data.gz.part").write_bytes(left)
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT


def test_a_server_that_cannot_resume_still_works(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    server.breaks, server.resumable = 1, False
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT


def test_a_download_that_never_succeeds_ends_and_keeps_its_part(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    server.breaks, server.limit = 99, 0
    (tmp_path / "data.gz.part").write_bytes(CONTENT[:100])
    with pytest.raises(
        SharingError, match=r"data.gz: the connection broke off, 5 times in a row; start again to go on"
    ):
        fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path)
    assert (tmp_path / "data.gz.part").read_bytes() == CONTENT[:100]


def test_a_wrong_checksum_is_told_with_both_values(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    with pytest.raises(SharingError, match=f"data.gz: SHA-256 is {DIGEST}, expected {'0' * 64}"):
        fetching.fetch(f"{server.url}/data.gz", "0" * 64, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_told_at_once(server: Server, tmp_path: Path):
    with pytest.raises(SharingError, match=r"data\.gz: the server answers 404 Not Found"):
        fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path)
    assert len(server.ranges) == 1


def test_every_form_of_mirror(server: Server, tmp_path: Path):
    mirror = tmp_path / "my mirror"
    mirror.mkdir()
    (mirror / "data.gz").write_bytes(CONTENT)
    server.files["/copy/data.gz"] = CONTENT
    url = "https://example.invalid/folder/data.gz"
    for form in (str(mirror), mirror.as_uri(), f"{server.url}/copy", f"{server.url}/copy/"):
        assert fetching.fetch(url, DIGEST, tmp_path / "download", form).read_bytes() == CONTENT
    with pytest.raises(SharingError, match=r"holds no file other\.gz"):
        fetching.fetch("https://example.invalid/other.gz", DIGEST, tmp_path, str(mirror))
    with pytest.raises(SharingError, match="ftp://x: allowed are a folder, file://, http:// and https://"):
        fetching.fetch(url, DIGEST, tmp_path, "ftp://x")
    (mirror / "data.gz").write_bytes(b"changed")
    with pytest.raises(SharingError, match=f"data.gz: SHA-256 is .*, expected {DIGEST}"):
        fetching.fetch(url, DIGEST, tmp_path, str(mirror))


def test_a_local_mirror_may_have_folders(tmp_path: Path):
    (tmp_path / "news").mkdir()
    (tmp_path / "news" / "data.gz").write_bytes(CONTENT)
    path = fetching.fetch("data.gz", DIGEST, tmp_path / "download", str(tmp_path))
    assert path == tmp_path / "news" / "data.gz"
    with pytest.raises(SharingError, match=r"data\.gz: is published under no URL of its own; .* --mirror"):
        fetching.fetch("data.gz", DIGEST, tmp_path / "download")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.gz").write_bytes(b"other")
    with pytest.raises(SharingError, match=r"holds more than one file data\.gz"):
        fetching.fetch("data.gz", DIGEST, tmp_path / "download", str(tmp_path))


def test_an_unknown_checksum_is_recorded_once_and_checked_ever_after(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
):
    server.files["/data.gz"] = CONTENT
    url = f"{server.url}/data.gz"
    assert fetching.fetch(url, fetching.UNKNOWN, tmp_path).read_bytes() == CONTENT
    assert DIGEST in capsys.readouterr().err
    assert fetching.recorded_digest("data.gz", tmp_path) == DIGEST
    fetching.fetch(url, fetching.UNKNOWN, tmp_path)
    assert len(server.ranges) == 1, "a complete file was asked for again"
    server.files["/data.gz"] = b"changed"
    (tmp_path / "data.gz").unlink()
    with pytest.raises(SharingError, match=f"data.gz: SHA-256 is .*, expected {DIGEST}"):
        fetching.fetch(url, fetching.UNKNOWN, tmp_path)
