"""``fairseq-sharing distill``: the data that it writes, resuming, and training a student on it."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary, data_utils
from fairseq_processes import PLUGIN, fork_generation, fork_trainings, lines_by_kind
from sacrebleu.metrics import BLEU
from tiny_training import CYCLE_REV, TRAINING, read_checkpoint

from fairseq_sharing.commands import main
from fairseq_sharing.distillation import distill as distill_module
from fairseq_sharing.distillation.select import reasons
from fairseq_sharing.distillation.settings import DistillationSettings
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256
from fairseq_sharing.preparation import stream
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.preparation.text import Pipeline

PAIRS, CHUNK = 300, 70  # CHUNK does not divide PAIRS
KILLS = [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def small_chunks() -> None:
    """Use several chunks for a small corpus, in this process; record each in the journal, and pause after it."""
    distill_module.CHUNK, stream.SAVE_EVERY = CHUNK, 0.0
    stock = stream._write_journal

    def write_journal(journal: Path, state: dict) -> None:
        stock(journal, state)
        time.sleep(0.1)

    stream._write_journal = write_journal


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(distill_module, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory, commands) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "tiny"
    texts = ["--train", corpus / "train", "--valid", corpus / "valid", "--test", f"five={corpus / 'test1'}"]
    words = ["--source-lang", "en", "--target-lang", "de", "--subword-size", "40", "--workers", "1"]
    commands.run("fairseq_sharing", "prepare", "files", *texts, *words, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory, commands) -> Path:
    """The run directory of a teacher that has learned something."""
    folder = tmp_path_factory.mktemp("run") / "teacher-seed1"
    words = [prepared / "bin", "--user-dir", PLUGIN, *CYCLE_REV, *TRAINING, "--save-dir", folder / "checkpoints"]
    commands.run("fairseq_cli.train", *words, "--max-epoch", "16", "--keep-last-epochs", "2", "--disable-validation")
    config = {"run": "teacher", "dataset": "tiny", "seed": 1, "train": {"task": "translation"}}
    (folder / "config.yaml").write_text(json.dumps({**config, "evaluate": {"average_last": 1, "beam": 2}}))
    record = {"data": str(prepared), "exit_status": 0, "finished": "now", "train_seconds": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def call(run, tmp_path, capsys):
    """Run the command in this process; return the data directory, or the error if a status is expected."""

    def distill(*words: object, out: str = "kd", models=(run,), status: int = 0):
        given = ["distill", *models, "--out", tmp_path / out, "--workers", 1, "--max-len-b", 30, *words]
        capsys.readouterr()
        found, told = main([str(word) for word in given]), capsys.readouterr().err
        assert found == status, told
        return tmp_path / out if status == 0 else told

    return distill


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def binarized(folder: Path, language: str) -> list[str]:
    """Read the training text as fairseq does."""
    dictionary = Dictionary.load(str(folder / "bin" / f"dict.{language}.txt"))
    data = data_utils.load_indexed_dataset(str(folder / "bin" / f"train.en-de.{language}"), dictionary)
    assert all(words[-1] == dictionary.eos() and dictionary.unk() not in words for words in data)
    return [dictionary.string(words) for words in data]


@pytest.mark.parametrize(("engine", "share"), [("fairseq", 1.0), ("ctranslate2", 0.95)])
def test_targets_are_what_fairseq_generate_finds(engine, share, call, commands, run, prepared):
    folder = call("--engine", engine, "--filter", "none")
    done = commands.run(
        *("fairseq_cli.generate", prepared / "bin", "--path", run / "checkpoints" / "checkpoint_average.pt"),
        *("--gen-subset", "train", "--user-dir", PLUGIN, "--cpu", "--beam", 5, "--max-len-b", 30, "--max-tokens", 2048),
    )
    wanted = [text for _, (_, text) in sorted(lines_by_kind(done.stdout)["H"].items())]
    found = lines(folder / "bpe" / "train.de")
    assert len(wanted) == len(found) == PAIRS
    # The engines differ in translations that are cut off.
    whole = [n for n in range(PAIRS) if len(wanted[n].split()) < 30]
    assert len(whole) > 0.6 * PAIRS
    assert sum(found[n] == wanted[n] for n in whole) >= share * len(whole)
    assert lines(folder / "bpe" / "train.en") == lines(prepared / "bpe" / "train.en")
    assert found != lines(prepared / "bpe" / "train.de")


def test_only_the_training_targets_differ_from_the_data_of_the_teacher(call, prepared, run):
    folder = call("--filter", "none")
    ours, theirs = contents(folder), contents(prepared)
    training = {f"{place}/train.{lang}" for place in ("raw", "tok", "bpe") for lang in ("en", "de")}
    training |= {f"bin/train.en-de.{lang}.{kind}" for lang in ("en", "de") for kind in ("bin", "idx")}
    assert ours.keys() - theirs.keys() == {"translations/train.tsv"}
    assert theirs.keys() - ours.keys() == {"raw/train.en", "raw/train.de", "tok/train.en", "tok/train.de"}
    assert {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]} <= {
        *training,
        "manifest.json",
    }
    assert ours["bin/valid.en-de.de.bin"] == theirs["bin/valid.en-de.de.bin"]
    for language in ("en", "de"):
        assert binarized(folder, language) == lines(folder / "bpe" / f"train.{language}")
    assert ours["bin/train.en-de.en.bin"] == theirs["bin/train.en-de.en.bin"]
    assert ours["bin/train.en-de.de.bin"] != theirs["bin/train.en-de.de.bin"]


def test_the_manifest_names_teacher_search_and_counts(call, run):
    made = manifest(call("--filter", "unfinished,ratio", "--max-ratio", 1.2, "--keep-original"))
    record, train = made["distillation"], made["train"]
    assert made["command"] == "distill"
    assert record["teacher"]["checkpoints"] == [sha256(run / "checkpoints" / "checkpoint_average.pt")]
    assert (record["teacher"]["name"], record["teacher"]["data"]) == (str(run), "tiny")
    assert (record["targets"], record["engine"], record["beam"], record["lenpen"]) == ("best", "ctranslate2", 5, 1.0)
    assert (record["filters"], record["max_ratio"], record["originals"]) == (["unfinished", "ratio"], 1.2, 1)
    assert list(train["removed"]) == ["untranslated", "unknown", "unfinished", "ratio"]
    assert 0 < train["removed"]["ratio"] < PAIRS
    assert train["distilled"] + sum(train["removed"].values()) == train["original"] == PAIRS
    assert train["lines"] == train["distilled"] + PAIRS


def test_neither_processes_nor_chunks_change_the_bytes(call, monkeypatch):
    first = contents(call("--filter", "none", out="first"))
    assert contents(call("--filter", "none", "--workers", 2, out="second")) == first
    monkeypatch.setattr(distill_module, "CHUNK", PAIRS)
    whole = contents(call("--filter", "none", out="third"))
    same = sum(a == b for a, b in zip(*(c["bpe/train.de"].split(b"\n") for c in (first, whole)), strict=True))
    assert same >= 0.98 * PAIRS, "other batches change the rounding only"


def test_a_full_disk_names_the_file_and_the_next_run_finishes(call, small_disk, tmp_path):
    expected = contents(call(out="undisturbed"))
    failures = []
    for size in (100, 3_000, 10_000, 30_000):
        small_disk(size)
        failures.append(call(status=2).splitlines()[-1])
        assert not [path for path in tmp_path.rglob("*.tmp") if "kd" not in path.parts]
    small_disk(resource.RLIM_INFINITY)
    assert contents(call()) == expected
    for line in failures:
        assert re.fullmatch(r"fairseq-sharing distill: error: /\S+: File too large", line), failures


def test_a_list_of_one_is_the_best_and_a_longer_one_is_nearer_to_the_references(call, prepared):
    best, one, four = (
        call(*words, "--filter", "none", out=name)
        for name, words in {
            "best": (),
            "one": ("--targets", "interpolate", "--nbest", 1),
            "four": ("--targets", "interpolate", "--nbest", 4),
        }.items()
    )
    texts = [lines(folder / "bpe" / "train.de") for folder in (best, one, four)]
    assert texts[0] == texts[1] != texts[2]
    pipeline, metric = Pipeline.from_manifest(best), BLEU(effective_order=True)
    references = [pipeline.decode(line) for line in lines(prepared / "bpe" / "train.de")]
    scores = [
        [metric.sentence_score(pipeline.decode(text), [ref]).score for text, ref in zip(found, references, strict=True)]
        for found in (texts[0], texts[2])
    ]
    assert all(after >= before for before, after in zip(*scores, strict=True))
    assert sum(scores[1]) > sum(scores[0])


@pytest.mark.parametrize("engine", ["ctranslate2", "fairseq"])
def test_samples_depend_on_the_seed_only(engine, call):
    words = ["--targets", "sample", "--engine", engine, "--filter", "none"]
    processes = ("--workers", 2) if engine == "ctranslate2" else ()  # each would import fairseq
    first, again, other = (
        (call(*words, *more, out=name) / "translations" / "train.tsv").read_bytes()
        for name, more in {"first": (), "again": processes, "other": ("--seed", 2)}.items()
    )
    assert first == again != other


def test_changed_settings_repeat_only_what_they_change(call, capsys):
    first = contents(call())
    folder = call("--filter", "none", "--keep-original", "--upsample-original", 2)
    after = contents(folder)
    assert after["translations/train.tsv"] == first["translations/train.tsv"]
    assert len(lines(folder / "bpe" / "train.de")) == manifest(folder)["train"]["lines"] == 3 * PAIRS
    call("--beam", 1)
    assert (folder / "translations" / "train.tsv").read_bytes() != first["translations/train.tsv"]
    assert contents(call()) == first


def test_a_second_call_does_nothing_and_a_damaged_file_is_made_again(call, monkeypatch):
    folder = call()
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(distill_module, "translate_chunk", lambda *_: pytest.fail("translated again"))
        call()
        (folder / "bpe" / "train.de").write_text("changed\n")
        call()
    assert contents(folder) == before


def test_an_ensemble_translates_with_fairseq(call, run):
    models = [run / "checkpoints" / f"checkpoint{number}.pt" for number in (15, 16)]
    made = manifest(call("--filter", "none", models=models))
    assert made["distillation"]["engine"] == "fairseq"
    assert len(made["distillation"]["teacher"]["checkpoints"]) == 2
    told = call("--engine", "ctranslate2", models=models, status=2, out="other")
    assert "--engine ctranslate2: 2 checkpoints; allowed: one, or --engine fairseq" in told


def test_what_cannot_be_distilled_is_refused_in_one_line(call, prepared, corpus, tmp_path, capsys):
    def refused(*words, **choices) -> str:
        *progress, told = call(*words, status=2, **choices).splitlines()
        assert told.startswith("fairseq-sharing distill: error: ")
        assert not any("Traceback" in line for line in progress)
        return told

    assert "requires --keep-original" in refused("--upsample-original", 2)
    assert "--filter: 'long'; allowed: none, or" in refused("--filter", "long")
    assert "the filters removed all pairs (300 unfinished); change" in refused("--max-len-b", 1, out="none")
    folder = shutil.copytree(prepared, tmp_path / "data")
    assert "contains data of fairseq-sharing prepare; give another directory" in refused(out="data")
    (folder / "bpe" / "train.en").write_text("changed\n")
    told = refused("--data", folder, out="changed")
    assert "data/bpe/train.en: missing or changed since its preparation; re-run fairseq-sharing prepare" in told
    done = call()
    texts = ["--train", corpus / "train", "--valid", corpus / "valid", "--source-lang", "en", "--target-lang", "de"]
    assert main(["prepare", "files", *map(str, texts), "--out", str(done)]) == 2
    assert "contains data of fairseq-sharing distill; give another directory" in capsys.readouterr().err


def test_an_unfinished_directory_is_refused_by_name(call, monkeypatch, tmp_path):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distill_module, "process_chunks", stop)
        call(status=130)
    with pytest.raises(SharingError, match="re-run the same fairseq-sharing distill command"):
        read_manifest(tmp_path / "kd")
    call()
    assert not (tmp_path / "kd" / "work").exists()


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_command_writes_the_same_bytes(kills, commands, run, tmp_path):
    def start(out: str):
        words = ["distill", run, "--out", tmp_path / out, "--workers", 1, "--max-len-b", 30, "--keep-original"]
        return commands.start("fairseq_sharing", *words, before=small_chunks)

    began = time.monotonic()
    start("whole").wait()
    duration, moments, killed = time.monotonic() - began, random.Random(8), 0
    for _ in range(kills):
        command = start("killed")
        # Import and export take the first part.
        command.process.join(duration * moments.uniform(0.3, 1.0))
        if command.process.is_alive():
            os.kill(command.process.pid, signal.SIGKILL)
            killed += 1
        command.process.join()
        assert command.process.exitcode in (0, -signal.SIGKILL), command.stderr
    assert killed
    start("killed").wait()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_student_is_trained_on_the_data_and_evaluated(call, commands, run, tmp_path):
    """Word-level distillation from the same teacher, on the data of sequence-level distillation."""
    folder = call()
    config = tmp_path / "student.yaml"
    block = {
        **{"task": "translation", "arch": "transformer_sharing_tiny", "sharing": "universal"},
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_embed_dim": 16, "decoder_embed_dim": 16},
        **{"encoder_ffn_embed_dim": 16, "decoder_ffn_embed_dim": 16, "optimizer": "adam", "lr": 0.005},
        **{"max_tokens": 400, "max_epoch": 2, "share_all_embeddings": True, "fast": True},
        **{"criterion": "label_smoothed_cross_entropy_with_teacher", "label_smoothing": 0.1},
        **{"teacher": str(run / "checkpoints" / "checkpoint_last.pt"), "kd_temperature": 2.0},
    }
    config.write_text(json.dumps({"dataset": "tiny", "run": "student", "train": block}))
    words = ["train", config, "--data", folder, "--out", tmp_path / "student-seed1", "--devices", 1]
    commands.run("fairseq_sharing", *words, before=fork_trainings)
    log = (tmp_path / "student-seed1" / "train.log").read_text()
    valid = [json.loads(line[line.index("{") :]) for line in log.splitlines() if '"valid_teacher_kl"' in line]
    assert len(valid) == 2
    assert all(float(found["valid_teacher_kl"]) > 0 and "valid_nll_loss" in found for found in valid)
    saved = read_checkpoint(tmp_path / "student-seed1" / "checkpoints" / "checkpoint_last.pt")
    teacher = read_checkpoint(run / "checkpoints" / "checkpoint_last.pt")
    largest = max(
        value.shape[0] for name, value in teacher["model"].items() if torch.is_tensor(value) and "fc1" in name
    )
    assert largest == 24
    assert not any(value.shape[:1] == (24,) for value in saved["model"].values() if torch.is_tensor(value))
    words = ["evaluate", tmp_path / "student-seed1", "--average-last", 1, "--beam", 2]
    commands.run("fairseq_sharing", *words, before=fork_generation)
    result = json.loads((tmp_path / "student-seed1" / "result.json").read_text())
    assert result["scores"]["five"]["bleu"] >= 0


def test_reasons_are_those_of_the_default_filters():
    assert reasons(DistillationSettings()) == ["untranslated", "unknown", "empty", "unfinished", "ratio"]
