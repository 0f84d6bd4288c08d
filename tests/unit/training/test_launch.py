"""The fairseq-train commands of a plan, and the progress that is read from their log."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from sacrebleu.tokenizers import tokenizer_ja_mecab

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.experiment.dictionaries import dictionary_hashes
from fairseq_sharing.training import launch, processes
from fairseq_sharing.training.launch import train
from fairseq_sharing.training.log_tail import LogTail
from fairseq_sharing.training.plan import Machines, make_plan
from fairseq_sharing.training.processes import Process, wait
from fairseq_sharing.training.progress import TrainingProgress
from fairseq_sharing.training.rank import check_places, check_settings

CPU = {"kind": "cpu", "name": "cpu", "count": 4, "memory_bytes": 1}
GPUS = {"kind": "cuda", "name": "gpu", "count": 4, "memory_bytes": 80 * 1024**3}


def _flag(command, name):
    return command[command.index(name) + 1]


@pytest.mark.usefixtures("machine")
def test_plan_names_data_run_and_seed(tmp_path):
    plan = make_plan(compose("toy", ["row=vanilla", "seed=3"]), runs=tmp_path, data=tmp_path / "d")
    command = plan.command()
    assert command[:2] == ["fairseq-train", str(tmp_path / "d" / "bin")]
    assert _flag(command, "--save-dir") == str(tmp_path / "toy" / "vanilla-seed3" / "checkpoints")
    assert _flag(command, "--seed") == "3"
    assert _flag(command, "--distributed-world-size") == "1"
    assert "--cpu" in command


TRANSLATION = "arch: transformer_sharing"
LANGUAGE_MODEL = "task: language_modeling, arch: transformer_lm_sharing"


@pytest.fixture
def small(tmp_path):
    """Return a function that makes a configuration and data of some languages and returns the plan."""

    def plan(train: str, languages: tuple[str, str] | None, name: str = "data", *overrides: str):
        data = tmp_path / name
        (data / "bin").mkdir(parents=True, exist_ok=True)
        if languages is not None:
            manifest = dict(zip(("source_lang", "target_lang"), languages, strict=True))
            (data / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "small.yaml").write_text(f"dataset: mine\ntrain: {{{train}, max_tokens: 100}}\n")
        return make_plan(compose(tmp_path / "small.yaml", overrides), runs=tmp_path, data=data)

    return plan


def _languages(plan):
    command = plan.command()
    return [_flag(command, flag) for flag in ("--source-lang", "--target-lang") if flag in command]


@pytest.mark.usefixtures("machine")
def test_languages_are_those_of_the_data_and_a_language_model_has_none(small):
    assert _languages(small(TRANSLATION, ("fr", "en"))) == ["fr", "en"]
    assert _languages(small(f"{TRANSLATION}, source_lang: fr", ("fr", "en"))) == ["fr", "en"]
    assert _languages(small(LANGUAGE_MODEL, ("en", ""))) == []


@pytest.mark.usefixtures("machine")
def test_a_model_for_several_directions_gets_no_languages_which_would_train_one_only(small):
    several = f"{TRANSLATION}, task: translation_multi_simple_epoch, lang_pairs: [fr-en, en-fr], langs: [fr, en]"
    plan = small(several, ("fr", "en"))
    assert _languages(plan) == []
    assert _flag(plan.command(), "--lang-pairs") == "fr-en,en-fr"
    assert plan.direction() == ("fr", "en")


@pytest.mark.usefixtures("machine")
def test_languages_of_data_without_a_manifest_are_configured_or_inferred(small):
    assert _languages(small(f"{TRANSLATION}, source_lang: x, target_lang: y", None)) == ["x", "y"]
    plan = small(TRANSLATION, None)
    assert _languages(plan) == []
    (plan.data / "bin" / "train.cs-uk.cs.idx").touch()
    assert _languages(plan) == ["cs", "uk"]
    assert plan.direction() == ("cs", "uk")


@pytest.mark.parametrize(
    ("train", "languages", "message"),
    [
        (f"{TRANSLATION}, source_lang: en", ("de", "en"), "train.source_lang: en; allowed: de, the language of "),
        (f"{TRANSLATION}, target-lang: de", ("de", "en"), "train.target_lang: de; allowed: en, the language of "),
        (LANGUAGE_MODEL, ("de", "en"), "train.task: language_modeling; allowed: a translation task, "),
        (TRANSLATION, ("en", ""), "/data: monolingual data; allowed: train.task and train.arch of a language model"),
        (TRANSLATION, ("--user-dir=x", "en"), "source_lang is '--user-dir=x'; allowed: a language code"),
        (TRANSLATION, ("../x", "en"), "source_lang is '../x'; allowed: a language code"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_data_of_other_languages_are_refused(small, train, languages, message):
    with pytest.raises(SharingError) as error:
        small(train, languages).words()
    assert message in str(error.value)


@pytest.mark.usefixtures("machine")
def test_a_run_is_not_resumed_on_data_of_another_direction(small, tmp_path):
    plan = small(TRANSLATION, ("en", "de"))
    plan.run.checkpoints.mkdir(parents=True)
    (plan.run.checkpoints / "checkpoint_last.pt").touch()
    plan.run.write_config(compose(tmp_path / "small.yaml", ["train.source_lang=en", "train.target_lang=de"]))
    batch = {"tokens_per_batch": plan.tokens_per_batch(), "batch": plan.batch()}
    plan.run.write_record({"source_lang": "en", "target_lang": "de", **batch, "exit_status": 0, "finished": "today"})
    output = io.StringIO()
    train(plan, Console(file=output))
    assert "nothing to do" in output.getvalue(), "languages in the configuration of the run are no change"
    with pytest.raises(SharingError) as error:
        train(small(TRANSLATION, ("de", "en"), "reversed"), Console(file=output))
    assert str(error.value) == (
        f"{tmp_path}/reversed: direction de-en; {plan.run.path} was trained for en-de; allowed: data of that direction"
    )


def test_a_run_is_not_resumed_with_other_dictionaries_of_the_same_size(small, tmp_path):
    plan = small(TRANSLATION, ("en", "de"))
    plan.run.checkpoints.mkdir(parents=True)
    (plan.run.checkpoints / "checkpoint_last.pt").touch()
    plan.run.write_config(plan.config)
    (plan.data / "bin" / "dict.en.txt").write_text("a 1\n")
    record = {"tokens_per_batch": plan.tokens_per_batch(), "batch": plan.batch(), "exit_status": 0, "finished": "today"}
    plan.run.write_record({**record, "dictionaries": dictionary_hashes(plan.data)})
    train(plan, Console(file=io.StringIO()))
    (plan.data / "bin" / "dict.en.txt").write_text("b 1\n")
    with pytest.raises(SharingError, match=r"data: its dictionaries are not those that .* was trained with; allowed: "):
        train(plan, Console(file=io.StringIO()))


def test_other_weights_are_loaded_at_the_first_start_only(small):
    other = ["train.restore_file=x.pt", "train.reset_optimizer=true"]
    plan = small(TRANSLATION, ("en", "de"), "data", *other)
    assert _flag(plan.words(), "--restore-file") == "x.pt"
    plan.run.checkpoints.mkdir(parents=True)
    (plan.run.checkpoints / "checkpoint_last.pt").touch()
    words = plan.words()
    assert "--restore-file" not in words
    assert "--reset-optimizer" not in words


@pytest.mark.usefixtures("machine")
def test_an_update_of_changing_length_is_described(small):
    plan = small(TRANSLATION, ("en", "de"), "data", "train.update_freq=[2,1]")
    assert _flag(plan.words(), "--update-freq") == "2,1"
    assert plan.batch() == "100 tokens x 1 device x update_freq [2, 1]"


@pytest.mark.usefixtures("machine")
def test_a_data_directory_is_no_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = make_plan(compose("toy", ["row=vanilla"]), runs=Path("--runs"), data=Path("--user-dir=x")).words()
    assert words[0] == "./--user-dir=x/bin"
    assert _flag(words, "--save-dir") == "./--runs/toy/vanilla-seed1/checkpoints"


@pytest.mark.usefixtures("machine")
def test_paths_that_fairseq_would_split_are_refused(tmp_path):
    for where, name in (({"runs": tmp_path / "a:b"}, "run directory"), ({"data": tmp_path / "a:b"}, "data directory")):
        with pytest.raises(
            SharingError, match=rf"{name} .*a:b.*: contains ':', at which fairseq splits paths; allowed"
        ):
            make_plan(compose("toy", ["row=vanilla"]), **where)


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.usefixtures("machine")
def test_the_command_checks_the_train_block_first(tmp_path, capsys, dry):
    words = ["toy", "row=vanilla", "train.sharring=none", "--runs", str(tmp_path / "runs"), *dry]
    assert main(["train", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("fairseq-sharing train: error: override: train.sharring: unknown key; nearest: sharing;")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("machine")
def test_several_processes_are_started_by_torchrun():
    command = make_plan(compose("toy", ["row=vanilla"]), devices=2).command()
    assert command[0] == "torchrun"
    assert (_flag(command, "--nnodes"), _flag(command, "--nproc-per-node")) == ("1", "2")
    assert (_flag(command, "--master-addr"), _flag(command, "-m")) == ("127.0.0.1", "fairseq_sharing.training.rank")
    assert _flag(command, "--distributed-world-size") == "2"
    assert "--cpu" in command


@pytest.mark.parametrize("machine", [GPUS], indirect=True)
@pytest.mark.usefixtures("machine")
def test_all_gpus_of_all_machines_share_the_batch():
    config = compose("wmt16_en_de", ["row=vanilla"])
    plans = [make_plan(config, machines=Machines(2, rank, "first:29500")) for rank in range(2)]
    for rank, plan in enumerate(plans):
        command = plan.command()
        assert (_flag(command, "--nnodes"), _flag(command, "--node-rank")) == ("2", str(rank))
        assert (_flag(command, "--master-addr"), _flag(command, "--master-port")) == ("first", "29500")
        assert (_flag(command, "--nproc-per-node"), _flag(command, "--distributed-world-size")) == ("4", "8")
        assert "--cpu" not in command
    assert plans[0].words() == plans[1].words()
    assert plans[0].world() == "world size 8 (GPUs on 2 machines)"
    assert plans[0].batch() == "458,752 tokens per batch = 3,584 tokens x 8 devices x update_freq 16"


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ((0,), "--nodes must be at least 1, got 0"),
        ((2, 2, "a:1"), "--node-rank must be between 0 and 1 (--nodes - 1), got 2"),
        ((2, 1), "--nodes 2: needs --master HOST:PORT, the address of machine 0"),
        ((2, 1, "host"), "--master must be HOST:PORT, got host; allowed: ports 1 to 65535"),
        ((2, 1, "host:0"), "--master must be HOST:PORT, got host:0; allowed: ports 1 to 65535"),
        ((2, 1, "host:65536"), "--master must be HOST:PORT, got host:65536; allowed: ports 1 to 65535"),
    ],
)
def test_machines_that_do_not_fit_together_are_refused(machines, message):
    with pytest.raises(SharingError) as caught:
        Machines(*machines)
    assert str(caught.value) == message


@pytest.mark.usefixtures("machine")
def test_tokens_per_batch_sets_update_freq():
    config = compose("toy", ["row=vanilla", "tokens_per_batch=16384", "train.max_tokens=4096"])
    plan = make_plan(config, devices=2)
    assert _flag(plan.command(), "--update-freq") == "2"
    assert plan.batch() == "16,384 tokens per batch = 4,096 tokens x 2 devices x update_freq 2"


@pytest.mark.parametrize("devices", [0, 5])
@pytest.mark.usefixtures("machine")
def test_more_devices_than_there_are_is_refused(devices):
    with pytest.raises(SharingError, match=f"--devices must be between 1 and 4 .* got {devices}"):
        make_plan(compose("toy", ["row=vanilla"]), devices=devices)


@pytest.mark.usefixtures("machine")
def test_a_training_whose_translations_could_not_be_scored_does_not_start(tmp_path, monkeypatch, caplog):
    started = []
    monkeypatch.setattr(launch, "_follow", lambda plan, *_: started.append(plan.config.evaluate.get("tokenize")))
    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)  # as if its package were not installed
    (tmp_path / "bin").mkdir()

    def start(language, *overrides):
        (tmp_path / "manifest.json").write_text(json.dumps({"source_lang": "en", "target_lang": language}))
        config = compose("toy", ["row=vanilla", "train.target_lang=null", *overrides])
        train(make_plan(config, runs=tmp_path / "runs", data=tmp_path), Console(file=io.StringIO()))

    for overrides, message in (
        ([], r"^target language ja_JP: BLEU's tokenizer ja-mecab .* pip install 'fairseq-sharing\[ja\]'; or choose"),
        (["evaluate.tokenize=moses"], "^tokenize: 'moses'; allowed: 13a, "),
        (["evaluate.beam=0"], "^evaluate.beam must be an integer >= 1, got 0"),
    ):
        with pytest.raises(SharingError, match=message):
            start("ja_JP", *overrides)
    assert not started
    assert [file.name for file in (tmp_path / "runs").rglob("*") if file.is_file()] == [".lock"]
    start("ja_JP", "evaluate.tokenize=char")
    assert not caplog.records
    start("th")
    assert started == ["char", None]
    assert caplog.records[0].getMessage().startswith("target language th: written without spaces")


@pytest.mark.usefixtures("machine")
def test_missing_data_names_the_command_that_makes_it(tmp_path):
    plan = make_plan(compose("toy", ["row=vanilla"]), runs=tmp_path, data=tmp_path / "none")
    with pytest.raises(SharingError, match=r"fairseq-sharing prepare toy --out .*none"):
        train(plan, Console(file=io.StringIO()))


@pytest.fixture
def follower(tmp_path):
    output = io.StringIO()
    progress = TrainingProgress(
        Console(file=output, width=200), "a", OmegaConf.create({"train": {"max_epoch": 2, "max_update": 0}})
    )
    log = tmp_path / "train.log"
    log.write_text('t | INFO | train | {"epoch": 9}\n')
    return LogTail(log, progress), log, output


def test_progress_outside_a_terminal_is_a_line_an_epoch(follower):
    tail, log, output = follower
    with log.open("a") as stream:
        stream.write('t | INFO | train_inner | {"epoch": 1, "update": 0.9, "num_updates": "90", "loss": "4", "wps": "1')
        stream.flush()
        tail.read()
        assert output.getvalue() == ""
        stream.write('234.5"}\nt | INFO | valid | {"epoch": 1, "valid_loss": "3.21", "valid_bleu": "12.3"}\n')
    tail.read()
    (line,) = output.getvalue().splitlines()
    assert "epoch 1/2 | loss 4.000, valid 3.210, BLEU 12.30 | 1,234 tokens/s | update 90 | " in line
    assert "left" in line


def test_summary_gives_what_was_measured(follower):
    tail, log, _ = follower
    assert tail.summary() == "no updates left to make"
    with log.open("a") as stream:
        stream.write('t | INFO | valid | {"epoch": 2, "valid_loss": "3.2"}\n')
        stream.write('t | INFO | train | {"epoch": 2, "train_num_updates": "1540", "train_gb_free": "70.5",')
        stream.write(' "train_wpb": "3949.2", "train_wps": "7000"}\n')
    tail.read()
    assert tail.summary() == (
        "2 epochs, 1,540 updates, valid loss 3.200; 3,949 target tokens per batch (measured),"
        " 7,000 target tokens/s in the last epoch"
    )
    assert tail.peak_gpu_bytes(80 * 1024**3) == int(9.5 * 1024**3)


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ("fairseq-train: error: --unique-layers must be ...\n", 1, "--unique-layers must be ..."),
        ("usage: train.py\ntrain.py: error: unrecognized arguments: --x\n", 2, "unrecognized arguments: --x"),
        ("Traceback (most recent call last):\n  File\nRuntimeError: no\n[W1] late\n", 1, "RuntimeError: no"),
        ("2026-01-01 00:00:00 | INFO | a | b\n", 3, "exit status 3"),
        ("", -9, "killed by SIGKILL (out of memory?)"),
        (
            "RuntimeError: Connection closed by peer\n  traceback : Signal 9 (SIGKILL) received by PID 7\n",
            1,
            "killed by SIGKILL (out of memory?)",
        ),
        ("fairseq-train: error: --x\nRuntimeError: closed\n", 1, "--x"),
        ("fairseq-train: error: --x\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n", 1, "--x"),
    ],
)
def test_failure_is_reported_by_fairseqs_own_line(follower, lines, status, message):
    tail, log, _ = follower
    with log.open("a") as stream:
        stream.write(lines)
    tail.read()
    assert tail.error(status) == message


def test_roll_call_of_the_ranks_is_shown(follower):
    tail, log, output = follower
    with log.open("a") as stream:
        stream.write("2026-01-01 00:00:00 | INFO | fairseq_sharing.training.rank | rank 1: here, cuda:1, GPU\n")
    tail.read()
    assert output.getvalue() == "  rank 1: here, cuda:1, GPU\n"


def test_two_ranks_on_one_gpu_are_refused():
    places = [("a", "cuda:0", "GPU"), ("a", "cuda:1", "GPU"), ("b", "cuda:0", "GPU"), ("b", "cuda:0", "GPU")]
    check_places(places[:3])
    check_places([("a", "cpu", "")] * 2)
    with pytest.raises(SharingError, match=r"^ranks 2 and 3 are both on cuda:0 of b; allowed: one rank per GPU$"):
        check_places(places)


def test_ranks_whose_batches_would_differ_are_refused():
    settings = {"--max-tokens": 4096, "--update-freq": [2], "--seed": 1}
    check_settings([settings, dict(settings)])
    with pytest.raises(
        SharingError, match=r"^--update-freq is \[2\] on rank 0 and \[4\] on rank 1; allowed: one value for all ranks$"
    ):
        check_settings([settings, {**settings, "--update-freq": [4]}])


def test_status_and_memory_of_a_failed_process_are_kept():
    record = {"peak_memory_bytes": 0}
    process = Process([sys.executable, "-c", "raise SystemExit(3)"], start_new_session=True)
    assert wait(process, record, lambda: None, []) == 3
    assert record["peak_memory_bytes"] > 1024**2


def test_a_process_that_ignores_a_signal_is_killed_after_a_while(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    process = Process([sys.executable, "-c", code], start_new_session=True)
    assert wait(process, {"peak_memory_bytes": 0}, lambda: None, [15]) == -9


@pytest.mark.parametrize(("rank", "told"), [("0", True), ("1", False)])
def test_another_number_of_ranks_than_planned_is_refused_once(rank, told):
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_sharing.training.rank", "data", "--distributed-world-size", "4"],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": rank},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    expected = (
        "fairseq-train: error: --distributed-world-size 4: torchrun started 2 ranks, which would change the batch"
    )
    assert done.stderr.startswith(expected) if told else not done.stderr
