"""The loss of the current model on training batches, from which an agent's reward is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class TrainingLoss:
    """Measures the loss on training batches, independently of the training iterator."""

    def __init__(self) -> None:
        # fairseq's iterator over the training set, once it is built.
        self.batches: Any = None

    def measure(self, trainer: Any, draw: Callable[[int, int], list[int]]) -> float:
        """Measure the loss without dropout and label smoothing on as many batches as an update has, over all ranks.

        Args:
            trainer: fairseq's trainer.
            draw: returns batch indices for (number of batches, count), equal on all ranks. Each rank takes its share.

        Returns:
            Nats per target token.
        """
        frozen, dataset = self.batches.frozen_batches, self.batches.dataset
        ranks, rank = trainer.data_parallel_world_size, trainer.data_parallel_rank
        frequencies = trainer.cfg.optimization.update_freq
        frequency = frequencies[min(self.batches.epoch, len(frequencies)) - 1]
        model, criterion = trainer.get_model(), trainer.get_criterion()
        padding = trainer.task.target_dictionary.pad()
        total = torch.zeros(2, dtype=torch.float64)
        model.eval()
        criterion.eval()
        with torch.no_grad():
            for index in draw(len(frozen), ranks * frequency)[rank::ranks]:
                sample = dataset.collater([dataset[item] for item in frozen[index]])
                sample, _ = trainer._prepare_sample(sample)
                _, _, logged = criterion(model, sample)
                total[0] += float(logged["nll_loss"] if "nll_loss" in logged else logged["loss"])
                total[1] += int(sample["target"].ne(padding).sum())
        if ranks > 1:
            total = total.to(trainer.device)
            torch.distributed.all_reduce(total)
        return float(total[0] / total[1])
