"""The plan of a study: its commands in order, what Slurm gets, what it is estimated to cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose, find_study
from fairseq_sharing.experiment.run_directory import default_directory
from fairseq_sharing.studies import cost as estimate
from fairseq_sharing.studies.plan import StudyPlan

WMT16 = find_study("wmt16_en_de")
STUDIES = ["wmt16_en_de", "news_commentary", "news_commentary_cpu", "multi30k", "moeut", "changing_sharing"]


def plan_of(study: str, *rows: str, **options) -> StudyPlan:
    return StudyPlan(find_study(study), study, rows, **options)


def words(command: str) -> list[str]:
    return command.split()


def test_stages_are_every_row_of_a_seed_then_the_next_seed():
    plan = StudyPlan(WMT16, "wmt16_en_de", ("cycle_n12", "vanilla"), (1, 2), ("train.max_update=9",), 4, mirror="m")
    train = "fairseq-sharing train wmt16_en_de row={} seed={} train.max_update=9 --devices 4"
    evaluate = "fairseq-sharing evaluate runs/wmt16_en_de/{}-seed{} --out runs/wmt16_en_de/report"
    assert [*plan.stages()] == [
        words("fairseq-sharing prepare wmt16_en_de --out data/wmt16_en_de --mirror m"),
        *(
            words(stage.format(row, seed))
            for seed in (1, 2)
            for row in ("vanilla", "cycle_n12")
            for stage in (train, evaluate)
        ),
        words("fairseq-sharing report runs/wmt16_en_de/report"),
    ]


def test_results_are_written_below_runs_or_where_the_user_says():
    for study in STUDIES:
        plan = plan_of(study)
        written = {Path(stage[stage.index("--out") + 1]) for stage in [*plan.stages()] if stage[1] == "evaluate"}
        assert written == {Path("runs") / study / "report"}, study
        assert plan.report()[-1] == f"runs/{study}/report"
    mine = plan_of("multi30k", "vanilla", out=Path("/mine"))
    assert mine.evaluate(mine.runs[0])[-2:] == ["--out", "/mine"]
    assert mine.report()[-1] == "/mine"


@pytest.mark.parametrize("study", STUDIES)
def test_runs_are_where_train_keeps_them_and_the_baseline_is_first(study):
    plan = plan_of(study)
    runs = plan.runs
    assert runs[0].row == plan.study.baseline
    assert len({run.directory.path for run in runs}) == len(runs)
    assert {run.row for run in runs} == set(plan.study.rows)
    for run in runs:
        config = compose(study, [f"row={run.row}", f"seed={run.seed}"])
        assert default_directory(config, Path("runs")) == run.directory.path


def test_seeds_are_those_of_the_study_unless_given():
    seeds = [(run.row, run.seed) for run in plan_of("multi30k", "vanilla", "vanilla_admin").runs]
    both = [(row, seed) for seed in (1, 2, 3) for row in ("vanilla_admin", "vanilla")]
    assert seeds == [*both, ("vanilla_admin", 4), ("vanilla_admin", 5)]
    assert [run.seed for run in plan_of("multi30k", "vanilla", seeds=(7,)).runs] == [7]


def test_a_row_with_the_map_of_another_is_trained_after_it():
    rows = plan_of("changing_sharing", "dlt_final", "dlt").chosen_rows()
    assert rows == ["dlt", "dlt_final"]


def test_unknown_row_is_refused():
    with pytest.raises(SharingError, match=r"^--rows vanila: no such row; allowed: vanilla admin "):
        plan_of("news_commentary", "vanila")


@pytest.mark.parametrize("override", ["dataset=mine", "run=other", "seed=2", "row=vanilla"])
def test_what_the_study_fixes_is_refused(override):
    with pytest.raises(SharingError, match=f"^{override}: fixed by the study, --rows and --seeds; allowed: train., "):
        plan_of("toy", overrides=(override,))


def test_estimate_is_that_of_the_operations_and_the_tokens():
    vanilla, deep = estimate.estimate_rows(plan_of("wmt16_en_de", "vanilla", "cycle_rev_n18", seeds=(1, 2)))
    d, ffn, length = 512, 2048, estimate.TOKENS_A_PAIR
    layers = 6 * (4 * d * d + 2 * d * ffn) + 6 * (8 * d * d + 2 * d * ffn)
    a_token = layers + 32_768 * d + (6 + 2 * 6) * 2 * length * d
    assert vanilla.tokens == 50_000 * 458_752
    assert vanilla.flops == pytest.approx(6 * a_token * vanilla.tokens)
    assert vanilla.device_hours(40) == pytest.approx(vanilla.flops / 40e12 / 3600)
    assert deep.flops > 2 * vanilla.flops
    assert vanilla.disk == 12 * vanilla.parameters * 13


def test_estimate_of_a_language_model_counts_tokens_per_epoch():
    plan = plan_of("news_commentary_lm", "dense", "moeut")
    dense, moeut = estimate.estimate_rows(plan)
    assert dense.tokens == moeut.tokens == 1782 * 8192, "the configuration ends after this many updates"
    assert 0.5 < moeut.flops / dense.flops < 0.8
    assert estimate.data_bytes(plan.study) == 7_300_000 // 30 * estimate.BYTES_A_PAIR


def test_dry_run_prints_every_command_and_the_cost(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "study",
                "run",
                "news_commentary",
                "--rows",
                "vanilla",
                "--seeds",
                "1",
                "2",
                "--dry-run",
                "train.max_epoch=3",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "$ fairseq-sharing train news_commentary row=vanilla seed=2 train.max_epoch=3" in told
    assert "Estimate, assuming 40 TFLOP/s per GPU" in told
    tokens = 3 * 230_000 * estimate.TOKENS_A_PAIR
    (row,) = [line.split() for line in told.splitlines() if line.split()[:1] == ["vanilla"]]
    assert row[:4] == ["vanilla", "2", "60.9M", f"{tokens / 1e6:,.0f}M"]
    assert "total of 2 runs: " in told
    assert main(["study", "run", "multi30k", "--out", "mine", "--dry-run"]) == 0
    assert "$ fairseq-sharing report mine" in capsys.readouterr().out
    assert main(["study", "run", "nothing"]) == 2
    assert "configuration nothing: no such file in the current directory or " in capsys.readouterr().err
    assert main(["study", "run", "news_commentary", "--slurm", "--dry-run"]) == 0
    assert "--gpus-per-node" not in capsys.readouterr().out
    assert not list(Path().iterdir()), "a dry run writes nothing"
