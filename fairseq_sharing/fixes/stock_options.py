"""Options of fairseq 0.12 that fail or give incorrect results: mended, or refused in one line."""

from __future__ import annotations

import functools
import importlib.util
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from fairseq import options, search, trainer
from fairseq.data import ConcatDataset, data_utils
from fairseq.tasks.language_modeling import LanguageModelingTask

from fairseq_sharing.errors import SharingError


def fix_valid_subsets() -> None:
    """Compare the names of subsets with ``--valid-subset``: fairseq compares those of files (``valid1.en-de.en``)."""
    stock = data_utils._find_extra_valid_paths

    def find_extra_valid_paths(dataset_path):
        return {name.partition(".")[0] for name in stock(dataset_path)}

    stock_raise = data_utils.raise_if_valid_subsets_unintentionally_ignored

    @functools.wraps(stock_raise)
    def raise_if_ignored(train_cfg):
        try:
            stock_raise(train_cfg)
        except ValueError as error:
            raise SharingError(f"--valid-subset {train_cfg.dataset.valid_subset}: {error}") from error

    data_utils._find_extra_valid_paths = find_extra_valid_paths
    data_utils.raise_if_valid_subsets_unintentionally_ignored = raise_if_ignored


def fix_combined_subsets() -> None:
    """Combine subsets (``train`` and ``train1``, or ``--combine-val``): fairseq repeats the first one -1 times."""
    stock = ConcatDataset.__init__

    @functools.wraps(stock)
    def init(self, datasets, sample_ratios=1):
        if not isinstance(sample_ratios, int):
            sample_ratios = [ratio if ratio > 0 else 1 for ratio in sample_ratios]
        stock(self, datasets, sample_ratios)

    ConcatDataset.__init__ = init


def refuse_broken_flags() -> None:
    """Refuse flags that end in tracebacks."""
    stock_parse = options.parse_args_and_arch
    stock_constraints = search.LexicallyConstrainedBeamSearch.init_constraints
    stock_init = trainer.Trainer.__init__

    @functools.wraps(stock_parse)
    def parse_args_and_arch(*args, **kwargs):
        parsed = stock_parse(*args, **kwargs)
        known: Namespace = parsed[0] if isinstance(parsed, tuple) else parsed
        if getattr(known, "replace_unk", None) is not None:
            raise SharingError(
                f"--replace-unk {known.replace_unk}".rstrip("@ ")
                + " fails in fairseq 0.12, whose hypotheses have no alignments for it; allowed: leave it out"
            )
        return parsed

    @functools.wraps(stock_constraints)
    def init_constraints(self, batch_constraints, beam_size):
        if batch_constraints is None:
            raise SharingError(
                f"--constraints {self.representation} requires constraints, which binarized data cannot contain; "
                "allowed: fairseq-interactive, with lines of the form source<tab>constraint<tab>constraint"
            )
        return stock_constraints(self, batch_constraints, beam_size)

    @functools.wraps(stock_init)
    def init(self, cfg, *args, **kwargs):
        _refuse_half_precision_on_cpu(cfg)
        return stock_init(self, cfg, *args, **kwargs)

    options.parse_args_and_arch = parse_args_and_arch
    search.LexicallyConstrainedBeamSearch.init_constraints = init_constraints
    trainer.Trainer.__init__ = init


def _refuse_half_precision_on_cpu(cfg: Any) -> None:
    common = cfg.common
    # fairseq sets tpu for --bf16 without a GPU
    has_tpu = common.tpu and importlib.util.find_spec("torch_xla") is not None
    if has_tpu or (torch.cuda.is_available() and not common.cpu):
        return
    flat = common.fp16 and not common.memory_efficient_fp16 and not common.fp16_no_flatten_grads
    for flag, given in (
        ("--memory-efficient-bf16", common.memory_efficient_bf16),
        ("--bf16", common.bf16),
        ("--fp16", flat),
        ("--amp", common.amp),
    ):
        if given:
            raise SharingError(f"{flag}: fairseq supports it on GPUs only; allowed on a CPU: --precision bf16")


def refuse_skipped_blocks() -> None:
    """Refuse to compute a perplexity without the blocks that are too long for the model, which fairseq leaves out."""
    stock = LanguageModelingTask.eval_lm_dataloader

    @functools.wraps(stock)
    def eval_lm_dataloader(self, dataset, *args, max_positions=None, context_window=0, **kwargs):
        sizes = np.asarray(dataset.sizes)
        context = np.minimum(np.cumsum(sizes) - sizes, context_window)  # the first block follows no tokens
        longest = int(np.max(sizes + context))
        if max_positions is not None and longest > max_positions:
            given = self.args.tokens_per_sample + context_window
            raise SharingError(
                f"--tokens-per-sample {given}: blocks of {longest} tokens would be "
                f"left out; allowed: at most {max_positions}, the positions of the model, for example "
                f"--tokens-per-sample {max_positions} --sample-break-mode none"
            )
        return stock(self, dataset, *args, max_positions=max_positions, context_window=context_window, **kwargs)

    LanguageModelingTask.eval_lm_dataloader = eval_lm_dataloader
