"""A whole table: its commands in order, what Slurm gets, what it is estimated to cost."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose, find_study
from fairseq_sharing.experiment.run_directory import RunDirectory, default_directory
from fairseq_sharing.studies import cost as estimate
from fairseq_sharing.studies import table as tables
from fairseq_sharing.studies.table import Table

WMT16 = find_study("wmt16_en_de")
STUDIES = ["wmt16_en_de", "news_commentary", "news_commentary_cpu", "multi30k", "moeut", "changing_sharing"]


def table_of(study: str, *rows: str, **options) -> Table:
    return Table(find_study(study), study, rows, **options)


def words(command: str) -> list[str]:
    return command.split()


def test_stages_are_every_row_of_a_seed_then_the_next_seed():
    table = Table(WMT16, "wmt16_en_de", ("cycle_n12", "vanilla"), (1, 2), ("train.max_update=9",), 4, mirror="m")
    train = "fairseq-sharing train wmt16_en_de row={} seed={} train.max_update=9 --devices 4"
    evaluate = "fairseq-sharing evaluate runs/wmt16_en_de/{}-seed{} --out runs/wmt16_en_de/report"
    assert table.stages() == [
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
        table = table_of(study)
        written = {Path(stage[stage.index("--out") + 1]) for stage in table.stages() if stage[1] == "evaluate"}
        assert written == {Path("runs") / study / "report"}, study
        assert table.report()[-1] == f"runs/{study}/report"
    mine = table_of("multi30k", "vanilla", out=Path("/mine"))
    assert mine.evaluate(mine.runs()[0])[-2:] == ["--out", "/mine"]
    assert mine.report()[-1] == "/mine"


@pytest.mark.parametrize("study", STUDIES)
def test_runs_are_where_train_keeps_them_and_the_baseline_is_first(study):
    table = table_of(study)
    runs = table.runs()
    assert runs[0].row == table.study.baseline
    assert len({run.path for run in runs}) == len(runs)
    assert {run.row for run in runs} == set(table.study.rows)
    for run in runs:
        config = compose(study, [f"row={run.row}", f"seed={run.seed}"])
        assert default_directory(config, Path("runs")) == run.path


def test_seeds_are_those_of_the_study_unless_given():
    seeds = [(run.row, run.seed) for run in table_of("multi30k", "vanilla", "vanilla_admin").runs()]
    both = [(row, seed) for seed in (1, 2, 3) for row in ("vanilla_admin", "vanilla")]
    assert seeds == [*both, ("vanilla_admin", 4), ("vanilla_admin", 5)]
    assert [run.seed for run in table_of("multi30k", "vanilla", seeds=(7,)).runs()] == [7]


def test_a_row_with_the_map_of_another_is_trained_after_it():
    rows = table_of("changing_sharing", "dlt_final", "dlt").chosen_rows()
    assert rows == ["dlt", "dlt_final"]


def test_unknown_row_is_refused():
    with pytest.raises(SharingError, match=r"^--rows vanila: no such row; allowed: vanilla admin "):
        table_of("news_commentary", "vanila")


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Stand-ins for this project's command and for sbatch: each call is written down, and one may fail."""
    calls = tmp_path / "calls"
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "sbatch $*" >>"{calls}"\necho 4711\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)

    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            if command[0] == "sbatch":
                super().__init__(command, **options)
                return
            code = f"open({str(calls)!r}, 'a').write(' '.join({command[4:]!r}) + chr(10))"
            if "cycle_n12-seed1" in " ".join(command) and (tmp_path / "fails").exists():
                code += "; raise SystemExit(2)"
            super().__init__([sys.executable, "-c", code], **options)

    monkeypatch.setattr(tables.subprocess, "Popen", Popen)
    return calls


def test_a_row_that_fails_is_named_and_holds_up_no_other(programs, tmp_path):
    (tmp_path / "fails").touch()
    table = table_of("wmt16_en_de", "vanilla", "cycle_n12", "cycle_n18", seeds=(1,))
    told = io.StringIO()
    failed = r"^not in the table: runs/wmt16_en_de/cycle_n12-seed1; re-run the command to resume them$"
    with pytest.raises(SharingError, match=failed):
        tables.make(table, Console(file=told))
    assert programs.read_text().splitlines() == [" ".join(stage[1:]) for stage in table.stages()]
    assert told.getvalue().splitlines()[0] == "$ fairseq-sharing prepare wmt16_en_de --out data/wmt16_en_de"
    assert "fairseq-sharing evaluate runs/wmt16_en_de/cycle_n12-seed1 failed (exit status 2)" in told.getvalue()


def test_a_finished_run_is_scored_where_it_could_not_be_trained(programs, tmp_path):
    run = tmp_path / "runs/wmt16_en_de/vanilla-seed1"
    RunDirectory(run).write_record({"exit_status": 0})
    RunDirectory(run).write_config(compose("wmt16_en_de", ["row=vanilla"]))
    table = table_of("wmt16_en_de", "vanilla", "cycle_n12", seeds=(1,), devices=4)
    tables.make(table, Console(file=io.StringIO()))
    prepare, vanilla, *others, report = [" ".join(stage[1:]) for stage in table.stages()]
    assert vanilla.startswith("train ")
    assert programs.read_text().splitlines() == [prepare, *others, report]
    programs.unlink()
    RunDirectory(run).write_config(compose("wmt16_en_de", ["row=vanilla", "train.max_update=9"]))
    tables.make(table, Console(file=io.StringIO()))
    assert programs.read_text().splitlines() == [prepare, vanilla, *others, report], "trained with other settings"


@pytest.mark.parametrize("override", ["dataset=mine", "run=other", "seed=2", "row=vanilla"])
def test_what_the_study_fixes_is_refused(override):
    with pytest.raises(SharingError, match=f"^{override}: fixed by the study, --rows and --seeds; allowed: train., "):
        table_of("toy", overrides=(override,))


def test_slurm_gets_an_array_of_one_line_a_run(programs, tmp_path):
    table = table_of("wmt16_en_de", "vanilla", "cycle_n12", seeds=(1, 2), devices=8, nodes=2)
    assert tables.submit(table, "--time 24:00:00", Console(file=io.StringIO())) == "4711"
    lines = (tmp_path / "runs/slurm/wmt16_en_de.txt").read_text().splitlines()
    assert lines[0] == "fairseq-sharing train wmt16_en_de row=vanilla seed=1 --devices 8 $MACHINES"
    assert len(lines) == 4
    prepare, sbatch = programs.read_text().splitlines()
    assert prepare.startswith("prepare wmt16_en_de")
    assert sbatch == (
        f"sbatch --parsable --array=1-4 --nodes 2 --gpus-per-node 8 --time 24:00:00 {tables.SBATCH} "
        "runs/slurm/wmt16_en_de.txt"
    )
    assert tables.SBATCH.is_file()


def test_a_signal_reaches_the_stage_and_ends_the_table(tmp_path):
    script = f"""
import sys
from pathlib import Path
from rich.console import Console
from fairseq_sharing.studies import table
Popen = table.subprocess.Popen
code = "import signal, sys, time; from pathlib import Path; "
code += "signal.signal(signal.SIGTERM, lambda *_: (Path({str(tmp_path / "told")!r}).touch(), sys.exit(1))); "
code += "print('ready', flush=True); time.sleep(60)"
table.subprocess.Popen = lambda command, **options: Popen([sys.executable, "-c", code], **options)
table.call(["fairseq-sharing", "train"], Console(stderr=True))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert (tmp_path / "told").exists()


def test_estimate_is_that_of_the_operations_and_the_tokens():
    vanilla, deep = estimate.estimate_rows(table_of("wmt16_en_de", "vanilla", "cycle_rev_n18", seeds=(1, 2)))
    d, ffn, length = 512, 2048, estimate.TOKENS_A_PAIR
    layers = 6 * (4 * d * d + 2 * d * ffn) + 6 * (8 * d * d + 2 * d * ffn)
    a_token = layers + 32_768 * d + (6 + 2 * 6) * 2 * length * d
    assert vanilla.tokens == 50_000 * 458_752
    assert vanilla.flops == pytest.approx(6 * a_token * vanilla.tokens)
    assert vanilla.device_hours(40) == pytest.approx(vanilla.flops / 40e12 / 3600)
    assert deep.flops > 2 * vanilla.flops
    assert vanilla.disk == 12 * vanilla.parameters * 13


def test_dry_run_prints_every_command_and_the_cost(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["table", "news_commentary", "--rows", "vanilla", "--seeds", "1", "2", "--dry-run", "train.max_epoch=3"])
        == 0
    )
    told = capsys.readouterr().out
    assert "$ fairseq-sharing train news_commentary row=vanilla seed=2 train.max_epoch=3" in told
    assert "estimate per run, assuming 40 TFLOP/s per GPU" in told
    tokens = 3 * 230_000 * estimate.TOKENS_A_PAIR
    assert f"vanilla: 60.9M parameters, {tokens / 1e6:,.0f}M target tokens, " in told
    assert "total of 2 runs: " in told
    assert main(["table", "multi30k", "--out", "mine", "--dry-run"]) == 0
    assert "$ fairseq-sharing report mine" in capsys.readouterr().out
    assert main(["table", "nothing"]) == 2
    assert "configuration nothing: no such file in the current directory or " in capsys.readouterr().err
    assert main(["table", "news_commentary", "--slurm", "--dry-run"]) == 2
    assert "--slurm: needs --gpus" in capsys.readouterr().err
    assert not list(Path().iterdir()), "a dry run writes nothing"
