"""The costs of every depth in ``describe``."""

from __future__ import annotations

import json

import pytest
from tiny_models import VOCABULARY

from fairseq_sharing import flags
from fairseq_sharing.commands import main
from fairseq_sharing.description import counts
from fairseq_sharing.description.depth_costs import as_ranges, costs_of_depths

BASE = {
    "arch": "transformer_sharing_tiny",
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "share_all_embeddings": True,
    "optimizer": "adam",
    "sharing": "cycle",
    "unique_layers": 4,
}


def test_macs_are_linear_in_the_depth_and_parameters_are_equal():
    four, eight, twelve = costs_of_depths(flags.parse({**BASE, "depths": "4,8,12"}), VOCABULARY, 9)
    assert twelve.macs - eight.macs == eight.macs - four.macs > 0
    assert four.parameters == eight.parameters == twelve.parameters
    assert eight.active == {"encoder": tuple(range(8)), "decoder": tuple(range(8))}


def test_active_layers_of_a_sequence():
    args = flags.parse({**BASE, "sharing": "sequence", "decoder_depths": "4,12"})
    four, twelve = costs_of_depths(args, VOCABULARY, 9)
    assert four.active == {"encoder": tuple(range(12)), "decoder": (0, 3, 6, 9)}
    assert four.depth == {"encoder": 12, "decoder": 4}
    assert four.macs < twelve.macs


def test_layers_as_ranges():
    assert as_ranges((0, 1, 2, 6, 8, 9)) == "0-2 6 8-9"


def test_one_depth_has_no_table():
    assert costs_of_depths(flags.parse(BASE), VOCABULARY, 9) == []


@pytest.mark.parametrize("arch", ["transformer_lm_sharing", "roberta_sharing", "transformer_moeut_tiny"])
def test_other_models(arch):
    base = {"arch": arch, "sharing": "cycle", "unique_layers": 2}
    stack = "decoder" if "lm" in arch else "encoder"
    depth = {f"{stack}_layers": 4, f"{stack}_depths": "2,4"}
    if "moeut" in arch:
        depth = {"encoder_layers": 4, "decoder_layers": 4, "depths": "2,4"}
    elif arch == "roberta_sharing":
        pytest.skip("describe does not support RoBERTa")
    two, four = costs_of_depths(flags.parse({**base, **depth}), VOCABULARY, 9)
    assert two.macs < four.macs
    assert two.parameters == four.parameters


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(counts, "estimate_both", lambda *_: {})  # takes long
    config = tmp_path / "mine.yaml"
    lines = [
        f"  {name}: {json.dumps(value)}" for name, value in {**BASE, "depths": [4, 12], "task": "translation"}.items()
    ]
    config.write_text("\n".join(["run: mine", "dataset: mine", "train:", *lines]) + "\n")
    assert main(["describe", str(config), "--vocabulary", "100"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("│ 4 "))
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["4", "0-3", "0-3"]
    assert main(["describe", str(config), "--vocabulary", "100", "--json"]) == 0
    depths = json.loads(capsys.readouterr().out)["depths"]
    assert [cost["depth"] for cost in depths] == [{"encoder": n, "decoder": n} for n in (4, 12)]
