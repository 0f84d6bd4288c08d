"""The study of docs/studies.md with real trainings: run, resume and report, from an empty directory."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fairseq_processes import fork_runs
from words_corpus import call

ROOT = Path(__file__).resolve().parents[2]
# Small enough for a test; the study itself trains four epochs.
SHORT = [
    "train.max_update=3",
    "train.max_tokens=2048",
    "evaluate.beam=1",
    "evaluate.max_len_b=9",
    "train.encoder_embed_dim=16",
    "train.decoder_embed_dim=16",
]
RUN = ["fairseq_sharing", "study", "run", "mine.yaml", "--rows", "vanilla", "cycle", "--seeds", "1"]


def test_study_of_the_page_runs_from_an_empty_directory(tmp_path, commands):
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml mine\.yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    first = commands.run(*RUN, "--jobs", "2", *SHORT, cwd=tmp_path, before=fork_runs)
    assert "2 runs, 2 at once" in first.stderr
    assert first.stderr.count(": finished, BLEU: ") == 2
    results = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "runs/mine/report").glob("*.json")}
    assert set(results) == {"vanilla-seed1", "cycle-seed1"}
    assert len({result["updates"] for result in results.values()}) == 1
    assert (tmp_path / "runs/mine/report/index.html").is_file()
    again = call("-m", *RUN, "--jobs", "2", *SHORT, cwd=tmp_path)
    assert "training on" not in again.stderr
