"""fairseq-validate: its command and its output."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation import validation
from fairseq_sharing.resources import PACKAGE_DIR

OUTPUT = """2026-11-28 10:00:00 | INFO | fairseq_cli.validate | loading model(s) from x.pt
2026-11-28 10:00:01 | INFO | valid | {"epoch": null, "valid_loss": "9.5", "valid_ppl": "724.1"}
2026-11-28 10:00:02 | INFO | valid | {"epoch": null, "valid_loss": "4.25", "valid_nll_loss": "3.5", "valid_wps": null}
2026-11-28 10:00:02 | INFO | other | {"valid_loss": "1"}
"""


def test_the_last_line_of_the_subset_is_read():
    assert validation.read_validation(OUTPUT) == {"loss": 4.25, "nll_loss": 3.5}


@pytest.mark.parametrize("output", ["", '2026 | INFO | valid | {"epoch": null}\n'])
def test_output_without_a_loss_is_refused(output):
    with pytest.raises(SharingError, match=r"^fairseq-validate reported no loss$"):
        validation.read_validation(output)


@pytest.mark.parametrize(
    ("cfg", "flags"),
    [
        ({}, ["--task", "translation", "--max-tokens", "4096"]),
        (
            {"task": {}, "dataset": {"max_tokens": 100, "max_tokens_valid": 200}},
            ["--task", "translation", "--max-tokens", "200"],
        ),
        (
            {"dataset": {"max_tokens": None, "batch_size": 24}, "task": {"_name": "language_modeling"}},
            ["--task", "language_modeling", "--batch-size", "24"],
        ),
        ({"task": Namespace(_name="masked_lm")}, ["--task", "masked_lm", "--max-tokens", "4096"]),
    ],
)
def test_the_command_has_task_and_batch_size_of_the_checkpoint(cfg, flags):
    command = validation.validation_command({"cfg": cfg}, Path("x.pt"), "bin")
    assert command == ["fairseq-validate", "bin", "--user-dir", str(PACKAGE_DIR), "--path", "x.pt", *flags]


def test_a_failure_is_reported_in_one_line(monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout="Traceback\nException: Cannot find dataset: valid\n\n")
    monkeypatch.setattr(validation.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SharingError, match=r"^fairseq-validate bin failed: Exception: Cannot find dataset: valid$"):
        validation.validate(["fairseq-validate", "bin"])
