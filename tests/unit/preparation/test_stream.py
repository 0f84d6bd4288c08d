import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fairseq_sharing.preparation import stream
from fairseq_sharing.preparation.parallel import Workers
from fairseq_sharing.preparation.stream import Chunk, process_chunks

LINES = 57


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(stream, "CHUNK", 10)
    monkeypatch.setattr(stream, "SAVE_EVERY", 0.0)
    paths = [tmp_path / "in.en", tmp_path / "in.de"]
    for path in paths:
        path.write_text("".join(f"{path.suffix} {'ä' * number}\n" for number in range(LINES)))
    return paths


class Upper:
    """Converts text to upper case and fails at the n-th chunk."""

    def __init__(self, breaks_at: int = -1):
        self.calls, self.breaks_at = 0, breaks_at

    def __call__(self, chunk: Chunk) -> tuple[tuple[bytes, ...], Counter[str]]:
        if self.calls == self.breaks_at:
            raise RuntimeError
        self.calls += 1
        return tuple(text.decode().upper().encode() for text in chunk), Counter(lines=chunk[0].count(b"\n"))


def run(texts: list[Path], function: Upper, key: str = "key") -> tuple[Counter[str], list[bytes]]:
    outputs = [path.with_name(path.name.replace("in", "out")) for path in texts]
    counts = process_chunks("upper", texts, outputs, function, Workers(1), LINES, key)
    return counts, [output.read_bytes() for output in outputs]


def test_a_failed_run_resumes(texts: list[Path], tmp_path: Path):
    with pytest.raises(RuntimeError):
        run(texts, Upper(breaks_at=3))
    assert not (tmp_path / "out.en").exists()
    assert json.loads((tmp_path / "out.en.journal.tmp").read_text())["lines"] == 30
    with (tmp_path / "out.de.tmp").open("ab") as file:
        file.write(b"written, but not noted any more")
    function = Upper()
    counts, outputs = run(texts, function)
    assert function.calls == 3, "chunks that were done are done again"
    assert counts == {"lines": LINES}
    assert outputs == [text.read_text().upper().encode() for text in texts]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.de", "in.en", "out.de", "out.en"]


def _edit_journal(directory: Path, **changes: object) -> None:
    journal = directory / "out.en.journal.tmp"
    journal.write_text(json.dumps({**json.loads(journal.read_text()), **changes}))


# What happens to the files of a stopped run.
DAMAGE: dict[str, Callable[[Path], object]] = {
    "other key": lambda directory: None,
    "lost part": lambda directory: (directory / "out.de.tmp").write_bytes(b""),
    "damaged journal": lambda directory: (directory / "out.en.journal.tmp").write_text("{"),
    "journal without checksums": lambda directory: (directory / "out.en.journal.tmp").write_text(
        json.dumps({"key": "key", "lines": 10, "read": [10, 10], "written": [10, 10], "counts": {}})
    ),
    "changed count": lambda directory: _edit_journal(directory, counts={"lines": 1000}),
    "changed position": lambda directory: _edit_journal(directory, read=[1, 1]),
    "too few inputs": lambda directory: _edit_journal(directory, read=[1]),
    "changed part": lambda directory: (directory / "out.de.tmp").write_bytes(
        (directory / "out.de.tmp").read_bytes().replace(b"DE", b"DX", 1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_outputs_that_cannot_be_resumed_are_restarted(texts: list[Path], tmp_path: Path, damage: str):
    with pytest.raises(RuntimeError):
        run(texts, Upper(breaks_at=3))
    DAMAGE[damage](tmp_path)
    function = Upper()
    counts, outputs = run(texts, function, key="other" if damage == "other key" else "key")
    assert function.calls == 6
    assert counts == {"lines": LINES}
    assert outputs == [text.read_text().upper().encode() for text in texts]
