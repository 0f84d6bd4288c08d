"""Compute a language model's perplexity on the test sets of a data directory, with ``fairseq-eval-lm``'s evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.evaluation.test_data import EvaluationData, Subset
from fairseq_sharing.experiment.environment import torch_threads
from fairseq_sharing.files import read_lines, write_text

TASK = "language_modeling"
_SOFTMAX_BATCH = 1024  # tokens whose probabilities are in memory together; large vocabularies need a limit


class LanguageModelScorer:
    """Scores test sets with a language model.

    Args:
        checkpoint: the checkpoint.
        data: the test sets.
        settings: ``tokens_per_sample``, ``context_window`` and ``max_tokens``.
        inputs: what identifies the checkpoint.
        suffix: distinguishes the files of a model at a smaller depth.
    """

    def __init__(
        self,
        checkpoint: Path,
        data: EvaluationData,
        settings: EvaluationSettings,
        inputs: Mapping[str, Any],
        suffix: str = "",
    ):
        self._suffix = suffix
        self._checkpoint, self._data, self._settings = checkpoint, data, settings
        self._inputs = {
            **inputs,
            "data": data.files,
            "tokens_per_sample": settings.tokens_per_sample,
            "context_window": settings.context_window,
        }
        self._loaded: tuple[Any, Any] | None = None

    def score(self, test: Subset, folder: Path, steps: Steps, console: Console) -> dict[str, Any]:
        """Score a test set, unless it has been scored with the same inputs.

        Args:
            test: the test set.
            folder: directory of the sums that repeated evaluations reuse.
            steps: the finished steps.
            console: prints the progress.

        Returns:
            segments (lines); tokens (subwords and line ends); words (separated by white space, and line ends); loss
            (nats per token); perplexity (per token); word_perplexity.

        Raises:
            SharingError: the settings do not fit the model, or fairseq omitted a part of the text.
        """
        step = test.name + self._suffix
        output = folder / f"{step}.perplexity.json"
        inputs = {**self._inputs, "subset": test.subset}
        if not steps.is_done(step, inputs, output):
            loss, tokens = self._evaluate(test, console)
            write_text(output, json.dumps({"loss": loss, "tokens": tokens}) + "\n")
            steps.record(step, inputs, output)
        found = json.loads(output.read_text(encoding="utf-8"))
        assert test.source is not None
        words = sum(len(line.split()) + 1 for line in read_lines(test.source))
        return {
            "segments": test.segments,
            "tokens": found["tokens"],
            "words": words,
            "loss": round(found["loss"], 6),
            "perplexity": round(_exp(found["loss"]), 4),
            "word_perplexity": round(_exp(found["loss"] * found["tokens"] / words), 4),
        }

    def _evaluate(self, test: Subset, console: Console) -> tuple[float, int]:
        """Return the mean loss in nats and the number of tokens."""
        from fairseq import utils
        from fairseq_cli.eval_lm import eval_lm

        model, task = self._loaded = self._loaded or self._load()
        task.load_dataset(test.subset)
        blocks = task.dataset(test.subset)
        batches = task.eval_lm_dataloader(
            dataset=blocks,
            max_tokens=max(self._settings.max_tokens, task.args.tokens_per_sample),
            max_positions=utils.resolve_max_positions(model.max_positions()),
            num_workers=0,  # a worker process would keep the lock of the run
            context_window=self._settings.context_window,
        )
        with_start = bool(getattr(task.args, "add_bos_token", False))
        seen = tokens = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal seen, tokens
            for batch in track(batches, test.name, console=console, total=len(batches)):
                seen += batch["nsentences"]
                tokens += batch["ntokens"] - with_start * batch["nsentences"]
                yield batch

        result = eval_lm(
            [model],
            task.source_dictionary,
            counted(),
            target_dictionary=task.target_dictionary,
            softmax_batch=_SOFTMAX_BATCH,
            remove_bos_token=with_start,
        )
        if seen != len(blocks):
            raise SharingError(
                f"{test.name}: {len(blocks) - seen} of its {len(blocks)} blocks are longer than the "
                f"{model.max_positions()} positions of the model; allowed: shorter blocks"
            )
        return float(result["loss"]) * math.log(2), int(tokens)

    def _load(self) -> tuple[Any, Any]:
        """Load the model and its task, with the configured number of tokens per block."""
        import torch
        from fairseq import checkpoint_utils

        torch.set_num_threads(torch_threads())
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(self._checkpoint)], arg_overrides={"data": str(self._data.binarized)}
        )
        (model,) = models
        trained, limit = task.args.tokens_per_sample, model.max_positions()
        length = self._settings.tokens_per_sample or trained
        if length > limit:
            raise SharingError(
                f"--tokens-per-sample {length}: the model has {limit} positions; allowed: 1 to {limit} "
                f"(it was trained with {trained})"
            )
        if self._settings.context_window >= length:
            raise SharingError(
                f"--context-window {self._settings.context_window}: allowed: less than the {length} tokens of a block"
            )
        task.args.tokens_per_sample = length - self._settings.context_window
        return (model.cuda() if torch.cuda.is_available() else model), task


def _exp(value: float) -> float:
    """Return e to the power of a loss; infinite if too large for a float, which the result refuses by name."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
