import json
from collections import Counter
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


@pytest.mark.parametrize("loss", ["other key", "lost part", "damaged journal"])
def test_outputs_that_cannot_be_resumed_are_restarted(texts: list[Path], tmp_path: Path, loss: str):
    with pytest.raises(RuntimeError):
        run(texts, Upper(breaks_at=3))
    if loss == "lost part":
        (tmp_path / "out.de.tmp").write_bytes(b"")
    elif loss == "damaged journal":
        (tmp_path / "out.en.journal.tmp").write_text("{")
    function = Upper()
    counts, outputs = run(texts, function, key="other" if loss == "other key" else "key")
    assert function.calls == 6
    assert counts == {"lines": LINES}
    assert outputs == [text.read_text().upper().encode() for text in texts]
