"""Download from a local server that interrupts connections, cannot resume or has a different file."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation import fetch as fetching
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.preparation.prepare import prepare
from fairseq_sharing.preparation.recipe import Corpus, Source, build_recipe
from fairseq_sharing.preparation.sources import find_texts, identity


class Server(ThreadingHTTPServer):
    """Serves byte strings by path; interrupts the first ``breaks`` requests after ``limit`` bytes."""

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


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def leave_part(server: Server, folder: Path, content: bytes) -> Path:
    """Leave a partial download of data.gz like a stopped run."""
    part = fetching._cached(f"{server.url}/data.gz", folder, ".part")
    part.parent.mkdir()
    part.write_bytes(content)
    return part


def test_a_broken_download_resumes_where_it_stopped(server: Server, tmp_path: Path):
    server.files["/a/data.gz"] = CONTENT
    server.breaks = 2
    path = fetching.fetch(f"{server.url}/a/data.gz", DIGEST, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert files(tmp_path) == ["data.gz"]
    fetching.fetch(f"{server.url}/a/data.gz", DIGEST, tmp_path)
    assert len(server.ranges) == 3, "a complete file was requested again"


def test_a_later_run_resumes_the_partial_download_of_an_earlier_run(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    part = leave_part(server, tmp_path, CONTENT[:3000])
    path = fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000-"]
    path.replace(part)
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"other" * 100, CONTENT + b"more"])
def test_a_partial_download_of_another_file_is_restarted(server: Server, tmp_path: Path, left: bytes):
    server.files["/data.gz"] = CONTENT
    leave_part(server, tmp_path, left)
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT


def test_a_server_that_cannot_resume_still_works(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    server.breaks, server.resumable = 1, False
    assert fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path).read_bytes() == CONTENT


def test_a_download_that_never_succeeds_ends_and_keeps_its_part(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    server.breaks, server.limit = 99, 0
    part = leave_part(server, tmp_path, CONTENT[:100])
    with pytest.raises(
        SharingError, match=r"data.gz: the connection was interrupted, 5 times in a row; re-run the command to resume"
    ):
        fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path)
    assert part.read_bytes() == CONTENT[:100]


def test_a_wrong_checksum_is_reported_with_both_values(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    with pytest.raises(SharingError, match=f"data.gz: SHA-256 is {DIGEST}, expected {'0' * 64}"):
        fetching.fetch(f"{server.url}/data.gz", "0" * 64, tmp_path)
    assert not files(tmp_path)


def test_a_missing_file_is_reported_at_once(server: Server, tmp_path: Path):
    with pytest.raises(SharingError, match=r"data\.gz: the server returned 404 Not Found"):
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
    with pytest.raises(SharingError, match=r"contains no file other\.gz"):
        fetching.fetch("https://example.invalid/other.gz", DIGEST, tmp_path, str(mirror))
    with pytest.raises(
        SharingError, match="ftp://x: unsupported location; allowed: a folder, file://, http:// or https://"
    ):
        fetching.fetch(url, DIGEST, tmp_path, "ftp://x")
    (mirror / "data.gz").write_bytes(b"changed")
    with pytest.raises(SharingError, match=f"data.gz: SHA-256 is .*, expected {DIGEST}"):
        fetching.fetch(url, DIGEST, tmp_path, str(mirror))


def test_a_local_mirror_may_have_folders(tmp_path: Path):
    (tmp_path / "news").mkdir()
    (tmp_path / "news" / "data.gz").write_bytes(CONTENT)
    path = fetching.fetch("data.gz", DIGEST, tmp_path / "download", str(tmp_path))
    assert path == tmp_path / "news" / "data.gz"
    with pytest.raises(
        SharingError, match=r"data\.gz: not available for download; give a folder that contains it with --mirror"
    ):
        fetching.fetch("data.gz", DIGEST, tmp_path / "download")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.gz").write_bytes(b"other")
    with pytest.raises(SharingError, match=r"contains more than one file data\.gz"):
        fetching.fetch("data.gz", DIGEST, tmp_path / "download", str(tmp_path))


def test_an_unknown_checksum_is_recorded_once_and_verified_afterwards(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
):
    server.files["/data.gz"] = CONTENT
    url = f"{server.url}/data.gz"
    path = fetching.fetch(url, fetching.UNKNOWN, tmp_path)
    assert path.read_bytes() == CONTENT
    assert DIGEST in capsys.readouterr().err
    assert fetching.recorded_digest(url, tmp_path) == DIGEST
    fetching.fetch(url, fetching.UNKNOWN, tmp_path)
    assert len(server.ranges) == 1, "a complete file was requested again"
    server.files["/data.gz"] = b"changed"
    path.unlink()
    with pytest.raises(SharingError, match=f"data.gz: SHA-256 is .*, expected {DIGEST}"):
        fetching.fetch(url, fetching.UNKNOWN, tmp_path)
    path.with_name("data.gz.sha256").write_bytes(b"\xff")
    with pytest.raises(SharingError, match=r"data\.gz\.sha256: not a SHA-256"):
        fetching.fetch(url, fetching.UNKNOWN, tmp_path)


ADDRESSES = [
    "/a/text.en",
    "/b/text.en",
    "/text.en?version=1",
    "/text.en?version=2",
    "/my%20text.en?v=1",
    "/my%20text.en",
]


@pytest.mark.parametrize("digest", ["known", fetching.UNKNOWN])
def test_another_address_is_another_file(server: Server, tmp_path: Path, digest: str):
    for number, address in enumerate([*ADDRESSES, *ADDRESSES]):
        content = f"{number % len(ADDRESSES)}".encode()
        server.files[address] = content
        wanted = hashlib.sha256(content).hexdigest() if digest == "known" else digest
        fetching.fetch(server.url + address, wanted, tmp_path)
    assert len(server.ranges) == len(ADDRESSES), "a complete file was asked for again, or not at all"
    for number, address in enumerate(ADDRESSES):
        content = str(number).encode()
        path = fetching.fetch(server.url + address, hashlib.sha256(content).hexdigest(), tmp_path)
        assert path.read_bytes() == content
        assert path.name == ("my text.en" if "my" in address else "text.en")


@pytest.mark.parametrize("new", ["/text.en?version=2", "/new%20text.en", "/b/text.en"])
def test_a_changed_address_gives_the_new_text(server: Server, tmp_path: Path, new: str):
    """Like in two runs of prepare, the identity of a text without checksum changes with its address."""
    server.files |= {"/text.en?version=1": b"old\n", new: b"new\n"}
    texts = {}
    for address in ("/text.en?version=1", new):
        corpus = Corpus({"en": Source(url=server.url + address, sha256=fetching.UNKNOWN)})
        found = identity(corpus, {"source": "en"}, tmp_path, None)["en"]
        assert identity(corpus, {"source": "en"}, tmp_path, None)["en"] == found
        texts[found] = [line for text in find_texts(corpus, {"source": "en"}, tmp_path, None) for line in text.lines()]
    assert texts == {
        hashlib.sha256(content).hexdigest(): [content.decode().strip()] for content in (b"old\n", b"new\n")
    }


def test_a_partial_download_without_checksum_is_not_resumed(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    leave_part(server, tmp_path, b"older")
    assert fetching.fetch(f"{server.url}/data.gz", fetching.UNKNOWN, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["/", "/..", "/a/%2e%2e", "/%00", "/a%2F.", "?text.en"])
def test_an_address_without_a_file_name_is_refused(server: Server, tmp_path: Path, address: str):
    with pytest.raises(SharingError, match="no file name; allowed: an address whose path ends in a file name"):
        fetching.fetch(server.url + address, fetching.UNKNOWN, tmp_path / "download")
    assert not list(tmp_path.iterdir())
    assert not server.ranges


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a b.en", "/a%20b.en"),
        ("/a%20b%2Fc.en?d=1&e=%26", "/a%20b%2Fc.en?d=1&e=%26"),
        ("/Größe.en?q=ä", "/Gr%C3%B6%C3%9Fe.en?q=%C3%A4"),
        ("/a[1](2)~,;.en", "/a[1](2)~,;.en"),
    ],
)
def test_an_address_may_contain_spaces_and_any_letters(server: Server, tmp_path: Path, written: str, sent: str):
    server.files[sent] = CONTENT
    assert fetching.fetch(server.url + written, fetching.UNKNOWN, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address",
    ["http://[::1/x", "http://127.0.0.1:port/x", "http://a..b/x", f"http://{'a' * 70}.b/x", "http://a b/x"],
)
def test_an_impossible_address_is_refused_at_once(tmp_path: Path, address: str):
    with pytest.raises(SharingError, match=re.escape(f"{address}: not an address (")) as error:
        fetching.fetch(address, fetching.UNKNOWN, tmp_path / "download")
    assert "times in a row" not in str(error.value)
    assert not files(tmp_path)


def test_a_preparation_that_stops_at_its_first_download_resumes(server: Server, tmp_path: Path):
    text = "".join(f"word{number % 7} and word{number % 3} .\n" for number in range(40)).encode()
    server.files |= {f"/{name}?version=1": text for name in ("train", "valid")}
    source = {
        name: {"en": {"url": f"{server.url}/{name}?version=1", "sha256": "unknown"}} for name in ("train", "valid")
    }
    recipe = build_recipe("mine", {"source_lang": "en", "splits": source, "subword": {"name": "none"}})
    server.breaks, server.limit = 20, 0
    with pytest.raises(SharingError, match="re-run the command to resume"):
        prepare(recipe, tmp_path / "data", workers=1)
    with pytest.raises(SharingError, match="preparation has not finished"):
        read_manifest(tmp_path / "data")
    server.breaks = 0
    assert prepare(recipe, tmp_path / "data", workers=1)["train"]["lines"] == 40


def test_an_encoded_path_cannot_name_another_folder(server: Server, tmp_path: Path):
    server.files["/%2e%2e%2F%2e%2e%2Fevil"] = CONTENT
    path = fetching.fetch(f"{server.url}/%2e%2e%2F%2e%2e%2Fevil", fetching.UNKNOWN, tmp_path / "download")
    assert path.name == "evil"
    assert path.is_relative_to(tmp_path / "download")
    assert [entry.name for entry in tmp_path.iterdir()] == ["download"]


def test_a_download_folder_that_links_outside_is_refused(server: Server, tmp_path: Path):
    server.files["/data.gz"] = CONTENT
    path = fetching._cached(f"{server.url}/data.gz", tmp_path / "download")
    path.parent.parent.mkdir()
    (tmp_path / "victim").mkdir()
    path.parent.symlink_to(tmp_path / "victim")
    with pytest.raises(SharingError, match=r"not inside .*download"):
        fetching.fetch(f"{server.url}/data.gz", DIGEST, tmp_path / "download")
    assert not files(tmp_path)


def test_a_mirror_has_decoded_names(server: Server, tmp_path: Path):
    server.files["/my%20text%5B1%5D.en"] = CONTENT
    url = "https://example.invalid/my%20text[1].en?version=1"
    assert fetching.fetch(url, DIGEST, tmp_path / "download", server.url).read_bytes() == CONTENT
    (tmp_path / "news").mkdir()
    (tmp_path / "news" / "my text[1].en").write_bytes(CONTENT)
    (tmp_path / "news" / "my text1.en").write_bytes(b"other")
    assert fetching.fetch(url, DIGEST, tmp_path, str(tmp_path)) == tmp_path / "news" / "my text[1].en"
