"""Options of fairseq 0.12 that the plugin mends, or refuses in one line."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import options, search
from fairseq.data import ConcatDataset, data_utils
from fairseq.tasks.language_modeling import LanguageModelingTask
from omegaconf import OmegaConf
from sharing_cases import BY_NAME
from tiny_models import dictionary, make_trainer

from fairseq_sharing.errors import SharingError


@pytest.fixture
def train_config(tmp_path):
    """Return a function that makes the configuration of a training on a folder with two validation sets."""
    for name in (
        "train.en-de.en.bin",
        "valid.en-de.en.bin",
        "valid1.en-de.en.bin",
        "valid1.en-de.de.idx",
        "dict.en.txt",
    ):
        (tmp_path / name).touch()

    def config(subsets, **options):
        dataset = {"ignore_unused_valid_subsets": False, "combine_valid_subsets": None, "disable_validation": False}
        return OmegaConf.create(
            {"dataset": {**dataset, "valid_subset": subsets, **options}, "task": {"data": str(tmp_path)}}
        )

    return config


def test_several_validation_sets_can_be_named(train_config):
    check = data_utils.raise_if_valid_subsets_unintentionally_ignored
    check(train_config("valid,valid1"))
    check(train_config("valid", ignore_unused_valid_subsets=True))
    with pytest.raises(SharingError) as caught:
        check(train_config("valid"))
    assert str(caught.value) == (
        "--valid-subset valid: Valid paths ['valid1'] will be ignored. Set --combine-val to combine them or "
        "--ignore-unused-valid-subsets to ignore them."
    )


def test_combined_subsets_contain_each_sentence_once():
    class Sentences(list):
        sizes = np.array([3, 4])

    combined = ConcatDataset([Sentences("ab"), Sentences("cd")], [-1, 1])
    assert [combined[index] for index in range(len(combined))] == list("abcd")
    assert combined.sizes.tolist() == [3, 4, 3, 4]
    assert len(ConcatDataset([Sentences("ab"), Sentences("cd")], [3, 1])) == 8


@pytest.mark.parametrize(
    ("flags", "named"), [(["--replace-unk"], "--replace-unk"), (["--replace-unk=dict.txt"], "--replace-unk dict.txt")]
)
def test_replacing_unknown_words_is_refused(flags, named):
    words = ["data", "--path=model.pt", *flags]
    with pytest.raises(SharingError) as caught:
        options.parse_args_and_arch(options.get_generation_parser(), words)
    assert str(caught.value) == (
        f"{named} fails in fairseq 0.12, whose hypotheses have no alignments for it; allowed: leave it out"
    )


def test_constraints_without_any_are_refused():
    strategy = search.LexicallyConstrainedBeamSearch(dictionary(), "ordered")
    strategy.init_constraints(torch.tensor([[1, 5, 0]]), 2)
    with pytest.raises(SharingError, match="--constraints ordered requires constraints, which"):
        strategy.init_constraints(None, 2)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"fp16": True}, "--fp16"),
        ({"bf16": True, "tpu": True}, "--bf16"),
        ({"bf16": True, "memory_efficient_bf16": True, "tpu": True}, "--memory-efficient-bf16"),
        ({"amp": True}, "--amp"),
    ],
)
def test_half_precision_is_refused_on_a_cpu(given, flag, data_dir, monkeypatch):
    trainer = make_trainer(data_dir, BY_NAME["cycle"])
    trainer.cfg.common.cpu = True
    trainer.cfg.common.update(given)
    with pytest.raises(SharingError) as caught:
        type(trainer)(trainer.cfg, trainer.task, trainer.model, trainer.criterion)
    assert str(caught.value) == f"{flag}: fairseq supports it on GPUs only; allowed on a CPU: --precision bf16"


@pytest.mark.parametrize(("tokens", "context"), [(8, 0), (6, 2)])
def test_perplexity_without_the_long_blocks_is_refused(tokens, context):
    task = LanguageModelingTask(
        SimpleNamespace(tokens_per_sample=tokens, sample_break_mode="none"), dictionary(), dictionary(), ["future"]
    )
    blocks = SimpleNamespace(sizes=np.array([tokens, tokens, 1]))
    with pytest.raises(SharingError) as caught:
        task.eval_lm_dataloader(dataset=blocks, max_positions=7, context_window=context)
    assert str(caught.value) == (
        "--tokens-per-sample 8: blocks of 8 tokens would be left out; allowed: at most 7, the positions of the model, "
        "for example --tokens-per-sample 7 --sample-break-mode none"
    )


@pytest.mark.parametrize(("sizes", "context"), [([7], 5), ([7, 1], 6), ([2, 5], 3)])
def test_the_context_of_a_block_is_what_precedes_it(sizes, context, monkeypatch):
    task = LanguageModelingTask(
        SimpleNamespace(tokens_per_sample=9, sample_break_mode="none"), dictionary(), dictionary(), ["future"]
    )
    batches = SimpleNamespace(next_epoch_itr=lambda shuffle: "batches")
    monkeypatch.setattr(task, "get_batch_iterator", lambda **_: batches)
    blocks = SimpleNamespace(sizes=np.array(sizes))
    assert task.eval_lm_dataloader(dataset=blocks, max_positions=7, context_window=context) == "batches"
