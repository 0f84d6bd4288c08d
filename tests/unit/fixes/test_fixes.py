"""Fixes of fairseq: lost sentences, names removed from numpy, partially written files, multi-line errors."""

from __future__ import annotations

import argparse
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import ListDataset, bucket_pad_length_dataset, data_utils, iterators
from fairseq.data.data_utils_fast import batch_by_size_vec
from fairseq.logging import metrics
from sharing_cases import BY_NAME
from tiny_models import make_trainer, save

from fairseq_sharing import fixes
from fairseq_sharing.checkpoints.files import copy_atomically, load_checkpoint, save_atomically
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fixes.error_messages import find_sharing_error, print_errors_on_one_line
from fairseq_sharing.fixes.processor import avoid_unusable_amx

STOCK_BATCH_BY_SIZE = data_utils.batch_by_size.__wrapped__


# Batching.


def test_buckets_are_percentiles_of_the_lengths():
    """--num-batch-buckets: with numpy 1, fairseq takes the lower of two lengths."""
    sizes = np.array([1, 2, 3, 4, 5, 6, 7, 8, 50])
    for get_buckets in (data_utils.get_buckets, bucket_pad_length_dataset.get_buckets):
        assert get_buckets(sizes, 4).tolist() == [3, 5, 7, 50]
        assert get_buckets(np.array([5, 5, 5, 9]), 4).tolist() == [5, 9]
    dataset = bucket_pad_length_dataset.BucketPadLengthDataset(
        ListDataset([torch.ones(size) for size in sizes], sizes), sizes, 4, pad_idx=0, left_pad=False
    )
    assert [len(dataset[index]) for index in range(9)] == [3, 3, 3, 5, 5, 7, 7, 50, 50]


def lengths(sentences: int) -> np.ndarray:
    return np.random.RandomState(sentences).randint(4, 40, sentences).astype(np.int64)


def batches(sentences: int, batch_by_size=None, **limits) -> list[np.ndarray]:
    sizes = lengths(sentences)
    order = np.argsort(sizes, kind="stable")
    batch_by_size = batch_by_size or data_utils.batch_by_size
    return batch_by_size(order, lambda i: sizes[i], num_tokens_vec=sizes[order], **limits)


@pytest.mark.parametrize("sentences", [1, 5, 7, 8, 9, 100, 461, 1000, 1014])
@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens": 4000, "required_batch_size_multiple": 8},
        {"max_tokens": 300, "required_batch_size_multiple": 8},
        {"max_sentences": 32, "required_batch_size_multiple": 8},
        {"max_tokens": 1000, "max_sentences": 20, "required_batch_size_multiple": 8},
        {"max_tokens": 300, "required_batch_size_multiple": 1},
        {"required_batch_size_multiple": 8},
    ],
    ids=str,
)
def test_every_sentence_is_in_one_batch(sentences, limits):
    made = batches(sentences, **limits)
    assert sorted(np.concatenate(made)) == list(range(sentences))
    sizes = lengths(sentences)
    for batch in made:
        assert len(batch) <= limits.get("max_sentences", sentences)
        assert len(batch) * sizes[batch].max() <= limits.get("max_tokens", 10**9)
    multiple = limits["required_batch_size_multiple"]
    assert all(len(batch) % multiple == 0 or len(batch) < multiple for batch in made[:-1])


def test_fairseq_alone_drops_sentences():
    """The original bug. If a later fairseq fixes it, remove the fix."""
    limits = {"max_tokens": 4000, "required_batch_size_multiple": 8}
    assert sum(map(len, batches(461, STOCK_BATCH_BY_SIZE, **limits))) < 461
    assert sum(map(len, batches(5, STOCK_BATCH_BY_SIZE, **limits))) == 0


@pytest.mark.parametrize("sentences", [5, 8, 64, 461, 1014])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_are_those_of_fairseq_before_it_dropped_any(sentences, multiple):
    sizes = np.sort(lengths(sentences))
    indices = np.arange(sentences)
    limits = {"max_tokens": 600, "max_sentences": 48, "required_batch_size_multiple": multiple}
    made = data_utils.batch_by_size(indices, None, num_tokens_vec=sizes, **limits)
    expected = batch_by_size_vec(indices, sizes, 600, 48, multiple)
    assert [list(batch) for batch in made] == [list(batch) for batch in expected]
    stock = STOCK_BATCH_BY_SIZE(indices, None, num_tokens_vec=sizes, **limits)
    if sum(map(len, stock)) == sentences:
        assert [list(batch) for batch in made] == [list(batch) for batch in stock]


def test_nothing_makes_no_batches():
    for indices in (np.array([], dtype=np.int64), []):
        assert data_utils.batch_by_size(indices, None, max_tokens=100, required_batch_size_multiple=8) == []


def test_lists_of_indices_and_functions_of_sizes_are_taken():
    made = data_utils.batch_by_size(list(range(13)), lambda i: 3, max_tokens=24, required_batch_size_multiple=8)
    assert [list(batch) for batch in made] == [list(range(8)), list(range(8, 13))]


def test_fixed_shapes_are_left_to_fairseq():
    shapes = np.array([(4, 10), (2, 20)], dtype=np.int64)
    arguments = (np.arange(10), lambda i: 5)
    made = data_utils.batch_by_size(*arguments, fixed_shapes=shapes)
    stock = STOCK_BATCH_BY_SIZE(*arguments, fixed_shapes=shapes)
    assert [list(batch) for batch in made] == [list(batch) for batch in stock]


# Names of numpy and torch.


def test_language_model_blocks_and_bucketing_find_numpy_s_integer():
    assert np.compat.long is np.int64
    from fairseq.data import TokenBlockDataset

    sentences = [torch.tensor([4, 5, 6, 2]), torch.tensor([7, 2])]
    blocks = TokenBlockDataset(sentences, np.array([4, 2]), block_size=None, pad=1, eos=2, break_mode="eos")
    assert [block.tolist() for block in blocks] == [[4, 5, 6, 2], [7, 2]]


def test_namespace_is_safe_to_load_and_other_classes_are_not(tmp_path):
    torch.save({"args": argparse.Namespace(arch="transformer")}, tmp_path / "args.pt")
    assert torch.load(tmp_path / "args.pt", weights_only=True)["args"].arch == "transformer"
    torch.save({"args": SimpleNamespace(arch="transformer")}, tmp_path / "other.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "other.pt", weights_only=True)


def test_applying_twice_changes_nothing():
    patched = data_utils.batch_by_size, checkpoint_utils.load_checkpoint
    fixes.apply()
    assert patched == (data_utils.batch_by_size, checkpoint_utils.load_checkpoint)


# Writing files.


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    checkpoint_utils.torch_persistent_save({"model": {"a": 1}}, str(path))
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint_utils.torch_persistent_save({"model": torch.ones(10**4), "bad": lambda: 0}, str(path))
    assert path.read_bytes() == before
    assert load_checkpoint(path) == {"model": {"a": 1}}


class Interrupted(BaseException):
    """Simulates the end of the process during a write."""


def test_copy_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    old, new = tmp_path / "checkpoint_best.pt", tmp_path / "checkpoint7.pt"
    old.write_bytes(b"old")
    new.write_bytes(b"new" * 1000)

    def stop(_descriptor):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        with pytest.raises(Interrupted):
            checkpoint_utils.PathManager.copy(str(new), str(old), overwrite=True)
    assert old.read_bytes() == b"old"
    assert checkpoint_utils.PathManager.copy(str(new), str(old), overwrite=True)
    assert old.read_bytes() == new.read_bytes()
    assert not checkpoint_utils.PathManager.copy(str(new), str(old), overwrite=False)


def test_contents_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    stock_fsync, stock_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (done.append("fsync"), stock_fsync(d))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), stock_replace(*names))[1])
    save_atomically({"model": {}}, tmp_path / "a.pt")
    copy_atomically(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))
    assert done == ["fsync", "rename", "fsync"] * 2, "the file, its name, then the folder"
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.pt"]


# Reading files.


def test_fairseq_says_in_one_line_why_it_reads_no_checkpoint(tmp_path):
    """Checkpoints are also checked when fairseq's commands and hubs read them."""
    path = tmp_path / "model.pt"
    torch.save({"model": {"weight": SimpleNamespace()}}, path)
    reason = "not read, because it could execute code (it contains types.SimpleNamespace)"
    for read in (checkpoint_utils.load_checkpoint_to_cpu, checkpoint_utils.load_ema_from_checkpoint):
        with pytest.raises(SharingError) as caught:
            read(str(path))
        assert str(caught.value) == f"{path}: {reason}; allowed: tensors and plain values"
    path.write_bytes(b"hello, this is no checkpoint")
    with pytest.raises(SharingError, match=f"^{path}: not a readable checkpoint"):
        checkpoint_utils.load_model_ensemble([str(path)])


# Meters.


def test_meters_of_arrays_are_the_same_after_resuming(tmp_path):
    """Log counts as --eval-bleu does: for whole batches, then resumed and updated again."""

    def log(number: int) -> None:
        metrics.log_scalar("_counts", np.array([4, 3, number, 1]))
        metrics.log_scalar("_float", np.float64(number) / 3, 2)
        metrics.log_scalar("loss", torch.tensor(number / 7), 5)
        metrics.log_derived("counted", lambda meters: float(meters["_counts"].sum[2]))

    with metrics.aggregate(new_root=True) as meter:
        log(1)
        log(2)
    save_atomically({"model": {}, "meters": meter.state_dict()}, tmp_path / "a.pt")
    with metrics.aggregate("resumed", new_root=True) as resumed:
        resumed.load_state_dict(load_checkpoint(tmp_path / "a.pt")["meters"])
        assert {key: vars(value) for key, value in resumed.items() if key != "_counts"} == {
            key: vars(value) for key, value in meter.items() if key not in ("_counts", "counted")
        }
        assert np.array_equal(resumed["_counts"].avg, meter["_counts"].avg)
        log(5)
    assert resumed.get_smoothed_value("counted") == 8.0
    assert resumed["_counts"].sum.tolist() == [12, 9, 8, 3]


# Errors.


def test_sharing_error_is_found_behind_other_errors():
    cause = SharingError("--unique-layers must be 3")
    hidden = RuntimeError("Cannot load model parameters")
    hidden.__context__ = cause  # as in fairseq's trainer, which raises in an except clause
    assert find_sharing_error(hidden) is cause
    assert find_sharing_error(cause) is cause
    assert find_sharing_error(ValueError("--unique-layers")) is None
    assert find_sharing_error(None) is None


def test_sharing_error_of_a_spawned_process_is_found_in_its_text():
    text = "-- Process 1 terminated:\nTraceback:\n  File x\nfairseq_sharing.errors.SharingError: --sharing is bad\n"
    assert str(find_sharing_error(Exception(text))) == "--sharing is bad"


@pytest.mark.parametrize("program", ["/usr/bin/fairseq-train", "fairseq-generate"])
def test_command_prints_a_sharing_error_on_one_line(program, monkeypatch, capsys):
    stock = []
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "excepthook", lambda *error: stock.append(error))
    print_errors_on_one_line()
    sys.excepthook(SharingError, SharingError("--sharing is bad"), None)
    assert capsys.readouterr().err == f"{os.path.basename(program)}: error: --sharing is bad\n"
    assert not stock
    other = ZeroDivisionError("a bug in the program")
    sys.excepthook(ZeroDivisionError, other, None)
    assert stock == [(ZeroDivisionError, other, None)]
    assert capsys.readouterr().err == ""


def test_other_programs_keep_their_own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["my_script.py"])
    before = sys.excepthook
    print_errors_on_one_line()
    assert sys.excepthook is before


def test_trainer_names_the_file_that_does_not_fit(data_dir, tmp_path):
    path = save(make_trainer(data_dir, BY_NAME["cycle"]), tmp_path / "cycle.pt")
    other = make_trainer(data_dir, BY_NAME["sequence"])
    with pytest.raises(SharingError, match=f"^{path}: the checkpoint's encoder has the layer map 0,1,2,0,1,2 "):
        other.load_checkpoint(str(path))


def test_log_has_the_maps_and_no_line_for_each_tied_parameter(data_dir, caplog):
    caplog.set_level("INFO", "fairseq.trainer")
    for name, lines in {
        "cycle": [
            "encoder: 6 layers, 3 parameter sets: 0,1,2,0,1,2",
            "decoder: 6 layers, 3 parameter sets: 0,1,2,0,1,2",
        ],
        "ffn_scope": [
            f"{s}: 6 layers, 2 parameter sets (encoder_attn,ffn): 0,0,0,1,1,1" for s in ("encoder", "decoder")
        ],
    }.items():
        caplog.clear()
        make_trainer(data_dir, BY_NAME[name])
        messages = [record.getMessage() for record in caplog.records if record.name == "fairseq.trainer"]
        assert messages[:2] == lines
        assert [line for line in messages if "shared parameter" in line] == [
            f"detected shared parameter: encoder.embed_tokens.weight <- decoder.{part}.weight"
            for part in ("embed_tokens", "output_projection")
        ]


# Waiting for data.


def test_waiting_for_the_next_batches_is_logged():
    def slow():
        for number in range(5):
            time.sleep(0.02)
            yield number

    with metrics.aggregate() as logged:
        groups = iterators.GroupedIterator(iterators.CountingIterator(slow(), total=5), 2)
        assert list(groups) == [[0, 1], [2, 3], [4]]
    assert 0.1 <= logged["data_wait"].sum < 10


# AMX on virtual machines.

CPUINFO = "processor\t: 0\ncpuid level\t: {level}\nflags\t\t: fpu avx512_bf16 {flags}\n"


@pytest.mark.parametrize(
    ("level", "flags", "limit"),
    [(28, "amx_tile amx_bf16", "AVX512_CORE_FP16"), (32, "amx_tile amx_bf16", None), (28, "avx512_fp16", None)],
)
def test_amx_without_its_tile_sizes_is_not_used(tmp_path, monkeypatch, level, flags, limit):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")  # restored after the test, together with what the function sets
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(level=level, flags=flags))
    avoid_unusable_amx(str(tmp_path / "cpuinfo"))
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == limit


def test_a_chosen_instruction_set_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(level=28, flags="amx_tile"))
    avoid_unusable_amx(str(tmp_path / "cpuinfo"))
    avoid_unusable_amx(str(tmp_path / "none"))
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_attention_is_never_cudnn_s():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
