"""fairseq's commands report an invalid option in one line: the flag, the value and the allowed values."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq_processes import PLUGIN, ROOT
from tiny_training import CYCLE_REV, LAYERS, distributed

SHARED = ["--arch", "transformer_sharing", *LAYERS]
CYCLE = [*SHARED, "--sharing", "cycle", "--unique-layers", "2"]


def told(done, command: str = "fairseq-train") -> str:
    """Return the error message in the last line of a command, without the command's name."""
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"{command}: error: "), done.stderr
    assert sum("error" in line.lower() for line in lines) == 1, done.stderr
    return lines[-1].removeprefix(f"{command}: error: ")


OPTIONS = {
    "M above N": (
        [*SHARED, "--sharing", "cycle", "--unique-layers", "5"],
        "--unique-layers must be between 1 and the number of layers (4), got 5",
    ),
    "M above N of one stack": (
        [*CYCLE, "--decoder-unique-layers", "5"],
        "--decoder-unique-layers must be between 1 and --decoder-layers (4), got 5",
    ),
    "M of 0": (
        [*SHARED, "--sharing", "sequence", "--unique-layers", "0"],
        "--unique-layers must be between 1 and the number of layers (4), got 0",
    ),
    "no M": (
        [*SHARED, "--sharing", "cycle_rev"],
        "--unique-layers: missing; --sharing cycle_rev needs a value from 1 to the number of layers (4)",
    ),
    "M that the strategy does not leave open": (
        [*SHARED, "--sharing", "universal", "--unique-layers", "2"],
        "--unique-layers must be 1 (or omitted) with --sharing universal and 4 layers, got 2",
    ),
    "map of another length": (
        [*SHARED, "--sharing", "custom", "--layer-map", "0,1,1"],
        "--layer-map must have 4 labels (the number of layers), got 3: 0,1,1",
    ),
    "no map": (
        [*SHARED, "--sharing", "custom"],
        "--layer-map: missing; --sharing custom needs 4 labels, for example 0,1,1,0",
    ),
    "map without custom": (
        [*CYCLE, "--layer-map", "0,1,1,0"],
        "--layer-map 0,1,1,0: needs --sharing custom, got cycle",
    ),
    "unknown strategy": (
        [*SHARED, "--encoder-sharing", "spiral"],
        "--encoder-sharing must be one of none, universal, sequence, cycle, cycle_rev, sandwich, custom, got spiral",
    ),
    "unknown scope": (
        [*CYCLE, "--sharing-scope", "ffn,embeddings"],
        "--sharing-scope must be layer, or some of self_attn,encoder_attn,ffn,layer_norm, got ffn,embeddings",
    ),
    "LayerDrop": (
        [*CYCLE, "--encoder-layerdrop", "0.2"],
        "--encoder-layerdrop 0.2 cannot be combined with this model: shared layers cannot be dropped individually; "
        "allowed: leave it out",
    ),
    "pruned layers": (
        [*CYCLE, "--decoder-layers-to-keep", "0,2"],
        "--decoder-layers-to-keep 0,2 cannot be combined with this model: shared layers cannot be pruned individually; "
        "allowed: leave it out",
    ),
    "quantization noise": (
        [*CYCLE, "--quant-noise-pq", "0.1"],
        "--quant-noise-pq 0.1 cannot be combined with this model: noise would be applied to a shared weight once per "
        "layer; allowed: leave it out",
    ),
    "scalar quantization noise": (
        [*CYCLE, "--quant-noise-scalar", "0.5"],
        "--quant-noise-scalar 0.5 cannot be combined with this model: noise would be applied to a shared weight once "
        "per layer; allowed: leave it out",
    ),
    "FSDP": (
        [*CYCLE, "--ddp-backend", "fully_sharded"],
        "--ddp-backend fully_sharded cannot shard layers that share parameters; "
        "allowed with --sharing: c10d, legacy_ddp, no_c10d, pytorch_ddp",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_refused_at_start_up(tmp_path, train, case):
    model, expected = OPTIONS[case]
    done = train(tmp_path, model=model, status=1)
    assert told(done) == expected
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_program_itself(trained, data):
    """Run a command as users do, without the test helpers."""
    flags = [
        "--path",
        trained / "checkpoint_last.pt",
        "--user-dir",
        PLUGIN,
        "--model-overrides",
        "{'sharing': 'cycle'}",
    ]
    program = Path(sys.executable).with_name("fairseq-generate")
    words = map(str, [program, data, *flags, "--gen-subset", "test1", "--cpu"])
    done = subprocess.run(list(words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert told(done, "fairseq-generate").startswith("the checkpoint's encoder has the layer map 0,1,1,0 (layer), ")


@pytest.fixture
def folder(trained, tmp_path):
    """A folder with a checkpoint to resume from."""
    shutil.copy(trained / "checkpoint_last.pt", tmp_path)
    return tmp_path


RESUMES = {
    "another map": (
        CYCLE,
        "the checkpoint's encoder has the layer map 0,1,1,0 (layer), but the options --encoder-layers and --sharing "
        "give 0,1,0,1 (layer); allowed: the options of its training, or --finetune-from-model with a vanilla "
        "checkpoint of 2 or 4 layers",
    ),
    "another scope": (
        [*CYCLE_REV, "--sharing-scope", "ffn"],
        "the checkpoint's encoder has the layer map 0,1,1,0 (layer), but the options --encoder-layers and --sharing "
        "give 0,1,1,0 (ffn); allowed: the options of its training, or --finetune-from-model with a vanilla checkpoint "
        "of 2 or 4 layers",
    ),
    "another N": (
        [*CYCLE_REV, "--decoder-layers", "6"],
        "the checkpoint's decoder has the layer map 0,1,1,0 (layer), but the options --decoder-layers and --sharing "
        "give 0,1,0,1,1,0 (layer); allowed: the options of its training, or --finetune-from-model with a vanilla "
        "checkpoint of 2 or 6 layers",
    ),
}


@pytest.mark.parametrize("case", RESUMES)
def test_resuming_with_another_map(folder, train, case):
    model, expected = RESUMES[case]
    done = train(folder, "--max-epoch", "3", model=model, status=1)
    assert told(done) == f"{folder / 'checkpoint_last.pt'}: {expected}"


@pytest.mark.parametrize(
    ("flag", "size"),
    [("--encoder-ffn-embed-dim", "32"), ("--encoder-embed-dim", "32"), ("--decoder-ffn-embed-dim", "8")],
)
def test_resuming_with_another_size(folder, train, flag, size):
    done = train(folder, "--max-epoch", "3", flag, size, status=1)
    told_line = told(done)
    assert told_line.startswith(f"{folder / 'checkpoint_last.pt'}: the checkpoint does not fit the model; check ")
    assert flag in told_line
    assert "size mismatch" in told_line


def test_resuming_where_nothing_can_be_read(tmp_path, train):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"not a checkpoint")
    done = train(tmp_path, status=1)
    assert told(done).startswith(f"{tmp_path / 'checkpoint_last.pt'}: not a readable checkpoint (")
    assert told(done).endswith(f"; {tmp_path} has no other checkpoint to resume from")


def test_an_error_in_spawned_processes(folder, train_words, commands):
    """fairseq spawns one process per GPU. Two simulated GPUs must fail as one command."""
    words = train_words(folder, *distributed(2), "--max-epoch", "3", model=CYCLE)
    done = commands.start("fairseq_cli.train", *words, before=_two_devices).wait(1)
    assert told(done).startswith(f"{folder / 'checkpoint_last.pt'}: the checkpoint's encoder has the layer map")


def _two_devices() -> None:
    torch.cuda.device_count = lambda: 2
