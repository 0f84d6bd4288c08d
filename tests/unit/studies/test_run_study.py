"""A whole study with stand-ins for its commands, its state on disk, and what ``list`` and ``clean`` make of it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from stand_in_run import words

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.averages import AVERAGE, hashes
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.config import find_study
from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.studies import run_study, runner
from fairseq_sharing.studies.plan import StudyPlan
from fairseq_sharing.studies.states import State, read_state

STUDY = """
question: Is [this] printed as it is?
data: toy
recipe: recipes/toy.yaml
rows:
  vanilla: {train: {sharing: none}}
  cycle: {train: {sharing: cycle, unique_layers: 2, encoder_layers: 4, decoder_layers: 4}}
seeds: [1, 2]
overrides: [train.max_epoch=1]
compare: {baseline: vanilla, primary: test_2016_flickr, margin: 0.5}
estimate: {pairs: 20000, vocabulary: 1144}
"""


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """Replace fairseq-sharing by stand-ins; return the file that lists the commands for the whole study."""
    monkeypatch.chdir(tmp_path)
    calls = tmp_path / "calls"
    calls.touch()
    note = f"import sys; open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    monkeypatch.setattr(run_study, "python_words", lambda command: [sys.executable, "-c", note, *command[1:]])
    monkeypatch.setattr(runner, "python_words", words)
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.2)
    (tmp_path / "mine.yaml").write_text(STUDY)
    return calls


def run_all(**settings) -> str:
    """Run the study; return what it prints."""
    told = io.StringIO()
    plan = StudyPlan(find_study("mine.yaml"), "mine.yaml", **settings)
    run_study.run_study(plan, 2, None, Console(file=told, width=1000))
    return told.getvalue()


def test_study_prepares_trains_evaluates_and_reports(commands):
    told = run_all()
    assert commands.read_text().splitlines() == ["prepare toy --out data/toy", "report runs/mine/report"]
    assert {file.name for file in Path("runs/mine/report").glob("*.json")} == {
        f"{row}-seed{seed}.json" for row in ("vanilla", "cycle") for seed in (1, 2)
    }
    assert "4 runs, 2 at once; logs: runs/mine/*/study.log" in told
    assert told.count("finished, BLEU: test_2016_flickr 30.00") == 4
    declared = yaml.safe_load(Path("runs/mine/report/study.yaml").read_text())
    compare = {"baseline": "vanilla", "primary": "test_2016_flickr", "metric": "bleu", "margin": 0.5}
    assert declared == {
        "study": "mine",
        "question": "Is [this] printed as it is?",
        "compare": compare,
        "earlier": [],
        "seeds": {"vanilla": [1, 2], "cycle": [1, 2]},
    }
    started = Path("runs/mine/cycle-seed1/run.json").stat().st_mtime_ns
    assert "training on" not in run_all(), "finished runs are left alone"
    assert Path("runs/mine/cycle-seed1/run.json").stat().st_mtime_ns == started


def test_a_changed_comparison_is_kept(commands):
    run_all(rows=("vanilla",), seeds=(1,))
    Path("mine.yaml").write_text(STUDY.replace("margin: 0.5", "margin: 1.0"))
    run_all(rows=("vanilla",), seeds=(1,))
    declared = yaml.safe_load(Path("runs/mine/report/study.yaml").read_text())
    assert (declared["compare"]["margin"], [earlier["margin"] for earlier in declared["earlier"]]) == (1.0, [0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must be a mapping"),
        ("a: [", "not readable as YAML"),
        ("earlier: 5\n", "earlier: 5; allowed: a list of compare blocks"),
        ("compare: [1]\n", "compare: \\[1\\]; allowed: a mapping with baseline, primary, metric, margin"),
    ],
)
def test_a_damaged_declaration_is_refused_in_one_line(commands, text, message):
    Path("runs/mine/report").mkdir(parents=True)
    Path("runs/mine/report/study.yaml").write_text(text)
    with pytest.raises(SharingError, match=f"study.yaml: {message}"):
        run_all(rows=("vanilla",), seeds=(1,))
    assert Path("runs/mine/report/study.yaml").read_text() == text


def test_failed_runs_are_listed_at_the_end(commands):
    Path("runs/mine/cycle-seed2").mkdir(parents=True)
    Path("runs/mine/cycle-seed2/fail").touch()
    message = r"^not in the table: cycle, seed 2 \(fairseq-train failed: something is wrong\); re-run the command to "
    with pytest.raises(SharingError, match=message):
        run_all()
    assert commands.read_text().splitlines()[-1] == "report runs/mine/report", "the finished runs are reported"


def test_a_run_with_other_settings_is_trained_further(commands):
    run_all(rows=("vanilla",), seeds=(1,))
    plan = StudyPlan(find_study("mine.yaml"), "mine.yaml", ("vanilla",), (1,), ("train.max_epoch=3",))
    assert read_state(plan, plan.runs[0]).state == State.STOPPED
    record = plan.runs[0].directory.record()
    plan = StudyPlan(find_study("mine.yaml"), "mine.yaml", ("vanilla",), (1,))
    assert read_state(plan, plan.runs[0]).state == State.FINISHED
    plan.runs[0].directory.write_record({**record, "train_seconds": 9.0})
    assert read_state(plan, plan.runs[0]).state == State.TRAINED, "the result is that of an earlier training"


ELSEWHERE = """
question: How do models of another setup compare?
data: {name: news, data_bin: data-bin/news, tests: {newstest: "test,raw/test.de"}}
rows:
  theirs: {checkpoints: "checkpoints/vanilla-seed{seed}"}
  shared: {checkpoints: "checkpoints/cycle-seed{seed}"}
seeds: [1, 2]
compare: {baseline: theirs}
"""


def test_checkpoints_of_another_setup_are_evaluated_and_reported(commands, capsys):
    Path("mine.yaml").write_text(ELSEWHERE)
    for row in ("vanilla", "cycle"):
        for seed in (1, 2):
            Path(f"checkpoints/{row}-seed{seed}").mkdir(parents=True)
    told = run_all()
    assert "training on" not in told
    assert told.count("finished, BLEU: ") == 4
    assert commands.read_text().splitlines() == ["report runs/mine/report"], "nothing is prepared"
    assert {file.name for file in Path("runs/mine/report").glob("*.json")} == {
        f"{row}-seed{seed}.json" for row in ("theirs", "shared") for seed in (1, 2)
    }
    assert Path("checkpoints/cycle-seed2/flags").read_text() == (
        "--out runs/mine/report --run shared --dataset news --data-bin data-bin/news --test newstest=test,raw/test.de"
    )
    assert "finished, BLEU" not in run_all()
    assert main(["study", "run", "mine.yaml", "--dry-run", "--rows", "theirs"]) == 0
    assert "fairseq-sharing train" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ELSEWHERE.replace('{checkpoints: "checkpoints/vanilla-seed{seed}"}', "{train: {}}"),
            "data.data_bin: row theirs has",
        ),
        (
            ELSEWHERE.replace('seed{seed}"}\n  shared', 'seed{seed}", train: {lr: 1}}\n  shared'),
            "theirs: checkpoints: trained els",
        ),
        (ELSEWHERE.replace(', tests: {newstest: "test,raw/test.de"}', ""), "data.tests: None; allowed: a mapping"),
        (STUDY.replace("recipe: recipes/toy.yaml", ""), "recipe: missing"),
    ],
)
def test_mistakes_in_rows_of_checkpoints_are_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SharingError, match=f"mine.yaml: {message}"):
        find_study(tmp_path / "mine.yaml")


def test_status_and_estimate_are_printed_from_disk(commands, capsys):
    run_all(rows=("vanilla",), seeds=(1,))
    assert main(["study", "status", "mine.yaml"]) == 0
    told = capsys.readouterr().out
    assert "mine: Is [this] printed as it is?" in " ".join(told.split())
    rows = [line.split() for line in told.splitlines() if line.split()[:1] in (["vanilla"], ["cycle"])]
    assert rows[0][:4] == ["vanilla", "1", "finished", "100%"]
    assert rows[0][-2:] == ["BLEU", "30.00"]
    assert rows[0][4] == "12,100", "the speed of the result, not the last one of the log"
    assert [row[2] for row in rows] == ["finished", "waiting", "waiting", "waiting"]
    assert "1 of 4 runs finished, 25% of the training done" in told
    assert main(["study", "estimate", "mine.yaml"]) == 0
    assert "total of 4 runs: 0.0 GPU hours" in capsys.readouterr().out


def test_status_and_estimate_need_no_permission_to_write(commands, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    for action in ("status", "estimate"):
        assert main(["study", action, "mine.yaml"]) == 0
    assert main(["study", "run", "mine.yaml"]) == 2
    assert "no permission to write to" in capsys.readouterr().err


def test_list_shows_studies_data_and_runs(commands, capsys):
    run_all(rows=("vanilla",), seeds=(1,))
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"study": "toy", "rows": 2, "runs": 2}.items() <= next(
        s for s in listed["studies"] if s["study"] == "toy"
    ).items()
    (run,) = listed["runs"]
    assert run["directory"] == "runs/mine/vanilla-seed1"
    assert (run["state"], run["score"]) == ("finished, 100%", "BLEU 30.00")
    assert listed["data"] == []
    assert main(["list", "runs", "data"]) == 0
    told = capsys.readouterr().out
    assert "vanilla-seed1" in told
    assert "data: none in data" in told
    with pytest.raises(SystemExit):
        main(["list", "models"])
    assert capsys.readouterr().err.endswith("models: allowed: studies, data, runs\n")
    Path("runs/mine/vanilla-seed1/config.yaml").write_text("run: ../x\n")
    assert main(["list", "runs"]) == 0
    assert "damaged" in capsys.readouterr().out


def record_average(run: RunDirectory) -> None:
    """Record the average as that of the two epochs, as ``evaluate`` does."""
    inputs = hashes([run.checkpoints / f"checkpoint{number}.pt" for number in (1, 2)])
    Steps(run.steps_file).record(AVERAGE, inputs, run.checkpoints / AVERAGE)


@pytest.mark.parametrize("lacks", ["average", "record", "bytes"])
def test_clean_keeps_checkpoints_whose_average_cannot_be_used(commands, capsys, lacks):
    """Another number of epochs was averaged, or the average is damaged: only the checkpoints can make it again."""
    run_all(rows=("vanilla",), seeds=(1,))
    run = RunDirectory(Path("runs/mine/vanilla-seed1"))
    for name in ("1", "2", "_average", "_average_last1"):
        (run.checkpoints / f"checkpoint{name}.pt").write_text(name)
    if lacks != "record":
        record_average(run)
    if lacks == "average":
        (run.checkpoints / AVERAGE).unlink()
    elif lacks == "bytes":
        (run.checkpoints / AVERAGE).write_text("flipped")
    assert main(["clean", "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert (run.checkpoints / "checkpoint1.pt").is_file()


LOGS = {
    "text": '{"update": "abc", "num_updates": [1], "epoch": {}, "wps": "x"}',
    "not finite": '{"update": NaN, "num_updates": 1e999, "epoch": Infinity, "wps": -1e999}',
    "huge": f'{{"update": {"9" * 400}, "num_updates": {"9" * 400}, "epoch": 1, "wps": 1}}',
}
CONFIGURATIONS = {"[1]": [1], "x": "x", "0": "0", "mapping": {"a": 1}, "missing": None}


@pytest.mark.parametrize("damaged", [*LOGS, *CONFIGURATIONS])
def test_foreign_logs_and_configurations_do_not_stop_list_clean_and_status(commands, capsys, damaged):
    run_all(rows=("vanilla",), seeds=(1,))
    run = RunDirectory(Path("runs/mine/vanilla-seed1"))
    if damaged in LOGS:
        run.log_file.write_text(f"t | INFO | train_inner | {LOGS[damaged]}\n")
    else:
        content = yaml.safe_load(run.config_file.read_text())
        content["train"]["max_epoch"] = content["train"]["max_update"] = CONFIGURATIONS[damaged]
        if damaged == "missing":
            del content["train"]
        run.config_file.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    for words_ in (["list", "runs"], ["clean", "--dry-run"], ["study", "status", "mine.yaml"]):
        assert main(words_) == 0, capsys.readouterr()
    assert "finished" in capsys.readouterr().out


def test_clean_keeps_what_results_need(commands, capsys):
    run_all(rows=("vanilla",))
    finished, other = (RunDirectory(Path(f"runs/mine/vanilla-seed{seed}")) for seed in (1, 2))
    for run in (finished, other):
        for name in ("1", "2", "_best", "_average", "_average_last5", "_2_700"):
            (run.checkpoints / f"checkpoint{name}.pt").write_text("x" * 1000)
        record_average(run)
    other.write_record({**other.record(), "exit_status": 143})
    assert main(["clean", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "runs/mine/vanilla-seed1: 4 checkpoints (checkpoint1.pt ... checkpoint_best.pt), 4.0 kB" in told
    assert "seed2" not in told
    assert len(list(finished.checkpoints.iterdir())) == 7
    assert main(["clean"]) == 2
    assert "4.0 kB could be removed; confirm with --yes" in capsys.readouterr().err
    with finished.locked():
        assert main(["clean", "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out, "a run that is being trained is skipped"
    assert main(["clean", "--yes"]) == 0
    assert {file.name for file in finished.checkpoints.iterdir()} == {
        *("checkpoint_average.pt", "checkpoint_average_last5.pt", "checkpoint_last.pt")
    }
    assert len(list(other.checkpoints.iterdir())) == 7
    assert main(["clean", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "soon"], "argument --budget: soon: allowed: a time above 0 such as 25m, 1h30m or 90s"),
        (["--budget", "0m"], "argument --budget: 0m: allowed: a time above 0"),
        (["--jobs", "0"], "argument --jobs: must be a whole number from 1"),
        (["--gpus", "-1"], "argument --gpus: must be a whole number from 1"),
        (["--gpus", "999999999"], "argument --gpus: must be a whole number from 1 to 1,024, got '999999999'"),
        (["--jobs", "1025"], "argument --jobs: must be a whole number from 1 to 1,024, got '1025'"),
        (["--tflops", "0"], "argument --tflops: must be a number above 0"),
        (["--seeds", "-5"], "--seeds"),
        (["--seeds", "1", "1"], "--seeds 1 1: allowed: whole numbers from 0, each once"),
        (["--nodes", "2"], "--nodes 2: needs --slurm"),
    ],
)
def test_senseless_flags_are_refused(capsys, flags, message):
    try:
        status = main(["study", "run", "toy", *flags, "--dry-run"])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_signal_reaches_the_stage_and_ends_the_study(tmp_path):
    script = f"""
import sys
from rich.console import Console
from fairseq_sharing.studies import run_study
code = "import signal, sys, time; from pathlib import Path; "
code += "signal.signal(signal.SIGTERM, lambda *_: (Path({str(tmp_path / "told")!r}).touch(), sys.exit(1))); "
code += "print('ready', flush=True); time.sleep(60)"
run_study.python_words = lambda command: [sys.executable, "-c", code]
run_study.call(["fairseq-sharing", "train"], Console(stderr=True))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert (tmp_path / "told").exists()
