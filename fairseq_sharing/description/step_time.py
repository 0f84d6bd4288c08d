"""Measure the time of a training step of a configuration, with random weights and a random batch."""

from __future__ import annotations

import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable

import torch
from fairseq import criterions, optim
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_sharing.description.step_memory import dummy_task, make_sample
from fairseq_sharing.experiment.config import BadKeyError


class StepTimer:
    """A model, its criterion and its optimizer on one device.

    Args:
        args: fairseq's arguments.
        vocabulary: size of the joined dictionary.
        tokens: tokens per side of the batch, rounded down to whole sentences, at least one sentence.
        length: tokens per sentence.
        device: ``cuda`` or ``cpu``.

    Raises:
        SharingError: the configuration has no optimizer.
    """

    def __init__(self, args: Namespace, vocabulary: int, tokens: int, length: int, device: str):
        from fairseq.models import ARCH_MODEL_REGISTRY

        task = dummy_task(vocabulary)
        if getattr(args, "optimizer", None) is None:
            raise BadKeyError("optimizer", "missing; allowed: an optimizer of fairseq or of this package")
        # One criterion rejects fairseq's default --ddp-backend, which does not affect one device.
        options = Namespace(**{**vars(args), "ddp_backend": "legacy_ddp"})
        self._device = device
        self._model = ARCH_MODEL_REGISTRY[args.arch].build_model(options, task).to(device).train()
        self._criterion = criterions.build_criterion(options, task)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hydra's, about the functions that fairseq calls
            cfg = convert_namespace_to_omegaconf(options)
        self._optimizer = optim.build_optimizer(cfg.optimizer, list(self._model.parameters()))
        words = torch.randint(task.source_dictionary.nspecial, vocabulary, (max(1, tokens // length), length))
        self._sample = make_sample(self._model, words.to(device))

    def seconds(self) -> float:
        """Run one update and return its time."""
        self._wait()
        began = time.perf_counter()
        self._optimizer.zero_grad()
        self._criterion(self._model, self._sample)[0].backward()
        self._optimizer.step()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def alternate(one: Callable[[], float], other: Callable[[], float], runs: int) -> tuple[float, float]:
    """Measure two things in turn, so that a change of the machine's load affects both.

    Args:
        one: runs the first thing and returns its time.
        other: runs the second.
        runs: number of measurements of each, after one that is not counted.

    Returns:
        The median times.
    """
    times = [(one(), other()) for _ in range(runs + 1)][1:]
    return statistics.median(first for first, _ in times), statistics.median(second for _, second in times)
