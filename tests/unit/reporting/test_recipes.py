"""What differs between recipes, and which rows have equal cost."""

from __future__ import annotations

import pytest
from evaluation_results import result, write

from fairseq_sharing.reporting.comparison_plan import ComparisonPlan
from fairseq_sharing.reporting.conclusions import conclude
from fairseq_sharing.reporting.equal_cost import equal_cost
from fairseq_sharing.reporting.recipes import differences
from fairseq_sharing.reporting.results import read_rows
from fairseq_sharing.reporting.tables import summary

COMMON = ["fairseq-train", "data/multi30k/bin", "--arch", "transformer_sharing_tiny", "--max-tokens", "4096"]


def _differences(tmp_path, commands):
    names = ("vanilla", "universal", "sequence", "cycle", "cycle_rev")
    results = [
        result(run, {"vanilla": "none"}.get(run, run), command=command if command is None else [*COMMON, *command])
        for run, command in zip(names, commands, strict=False)
    ]
    return differences(read_rows(write(tmp_path, *results)))


def test_recipe_names_what_differs_apart_from_sharing_sizes_seed_and_paths(tmp_path):
    assert _differences(
        tmp_path,
        [
            ["--sharing", "none", "--encoder-layers", "4", "--decoder-layers", "4", "--seed", "1", "--save-dir", "a"],
            ["--sharing", "universal", "--encoder-layers", "8", "--decoder-layers", "8", "--admin", "profile", "--cpu"],
            ["--sharing", "cycle", "--unique-layers", "4", "--seed", "2", "--admin", "closed_form"],
            ["--encoder-embed-dim", "128", "--decoder-embed-dim", "128", "--tensorboard-logdir", "b"],
            ["--encoder-embed-dim", "64", "--decoder-embed-dim", "128", "--update-freq", "2"],
        ],
    ) == [
        "",
        "Admin",
        "Admin closed_form",
        "width 128",
        "tokens per batch 8,192, encoder width 64, decoder width 128",
    ]


def test_equal_batches_and_recipes_have_no_difference(tmp_path):
    four = ["--update-freq", "4"]
    spread = ["--update-freq", "2", "--distributed-world-size", "2", "--fast"]
    assert _differences(tmp_path, [four, [*spread]]) == ["", "fast"]
    assert _differences(tmp_path, [four, four]) == ["", ""]
    assert _differences(tmp_path, [four, None]) == ["", "unknown"]


def test_text_of_a_command_cannot_break_a_table(tmp_path):
    evil = ["--dropout", "0.1 | <b>\\n\n= x", "--arch|<b>", "1"]
    (text, _) = _differences(tmp_path, [evil, []])
    assert text == "dropout 0.1 ? ?b??n?? x, arch??b? 1"
    assert len(_differences(tmp_path, [["--dropout", "9" * 99], []])[0]) == len("dropout ") + 40


def test_sizes_of_moeut_s_banks_are_not_differences_from_other_models(tmp_path):
    banks = ["--arch", "transformer_moeut_tiny", "--ffn-experts", "8"]
    assert _differences(tmp_path / "a", [[], banks]) == [
        "arch transformer_sharing_tiny",
        "arch transformer_moeut_tiny",
    ]
    assert _differences(tmp_path / "b", [[], banks, [*banks[:-1], "16"]]) == [
        "arch transformer_sharing_tiny",
        "ffn-experts 8",
        "ffn-experts 16",
    ]


def _study(folder, **changes):
    """Two rows without sharing and a shared row, with the parameters of the first and the computation of the second."""
    deep = {name: {"encoder": 4, "decoder": 4} for name in ("layers", "unique_layers")}
    rows = (
        ("vanilla", "none", 36.0, {"parameters": {"unique": 100, "effective": 100}}),
        ("deep", "none", 37.0, {"parameters": {"unique": 200, "effective": 200}, **deep}),
        ("cycle", "cycle", 36.5, {"parameters": {"unique": 102, "effective": 204}}),
    )
    write(
        folder,
        *(
            result(run, sharing, seed, bleu + seed / 10, **{**own, **changes.get(run, {})})
            for run, sharing, bleu, own in rows
            for seed in (1, 2, 3)
        ),
    )
    found = read_rows(folder)
    return equal_cost(found, conclude(found, ComparisonPlan("vanilla", "bleu")))


CPU = {"kind": "cpu", "name": "Some CPU", "count": 2, "threads": 2}


def test_shared_rows_are_compared_at_equal_cost_with_rows_without_sharing(tmp_path):
    headers, ((row, parameters, macs, time),) = _study(tmp_path)
    assert headers == ["Row", "At equal parameters", "At equal MACs of training", "At equal training time"]
    assert row == "cycle"
    assert parameters == "+0.50 [+0.30, +0.70] from vanilla"
    assert macs == "-0.50 [-0.70, -0.30] from deep"
    assert time == "-", "threads are not recorded"


def test_training_times_are_compared_on_equal_machines_only(tmp_path):
    same = {run: {"device": CPU, "train_seconds": 100.0} for run in ("vanilla", "deep", "cycle")}
    _, ((*_, time),) = _study(tmp_path / "a", **{**same, "deep": {"device": CPU, "train_seconds": 200.0}})
    assert time == "+0.50 [+0.30, +0.70] from vanilla"
    for other in ({"device": {**CPU, "threads": 1}}, {"device": CPU, "versions": {"torch": "2.9.0"}}, {}):
        _, ((*_, time),) = _study(tmp_path / "b", **{**same, "cycle": {"train_seconds": 100.0, **other}})
        assert time == "-", other


def test_macs_of_half_the_updates_or_of_moeut_are_not_equal(tmp_path):
    half = {"cycle": {"updates": 1920}}
    _, ((_, _, macs, _),) = _study(tmp_path / "a", **half)
    assert macs == "+0.50 [+0.30, +0.70] from vanilla", "102 is about 100 of twice the layers in half the updates"
    moeut = {"cycle": {"arch": "transformer_moeut_tiny"}}
    _, ((_, _, macs, _),) = _study(tmp_path / "b", **moeut)
    assert macs == "-", "the experts' parameters are not all used"
    recorded = {"vanilla": {"macs": 7}, "deep": {"macs": 9}, "cycle": {**moeut["cycle"], "macs": 9}}
    _, ((_, _, macs, _),) = _study(tmp_path / "c", **recorded)
    assert macs == "-0.50 [-0.70, -0.30] from deep"


@pytest.mark.parametrize("seeds", [1])
def test_single_seeds_are_not_compared_at_equal_cost(tmp_path, seeds):
    write(tmp_path, *(result(run, sharing, seeds) for run, sharing in (("vanilla", "none"), ("cycle", "cycle"))))
    rows = read_rows(tmp_path)
    assert equal_cost(rows, conclude(rows, ComparisonPlan("vanilla", "bleu")))[1] == []


def test_macs_are_a_column_if_any_row_records_them(tmp_path):
    write(tmp_path, result(macs=66_073_600), result("cycle", "cycle"))
    headers, cells = summary(read_rows(tmp_path))
    assert [line[headers.index("MACs, millions")] for line in cells] == ["66.1", "-"]
    write(tmp_path / "without", result())
    assert "MACs, millions" not in summary(read_rows(tmp_path / "without"))[0]
