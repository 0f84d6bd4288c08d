"""Trainings of tiny models whose sharing changes, in fairseq's trainer."""

from __future__ import annotations

import copy
import functools

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import DictConfig
from tiny_models import PAD, arguments, batch, perturb

from fairseq_sharing.training.config import fairseq_arguments

LAYERS = 4


def make_trainer(data_dir, *words: str, norm: str = "pre", seed: int = 1, **model_options) -> Trainer:
    """Make fairseq's trainer of a tiny model of 4 layers.

    Args:
        words: flags of the schedule and the training.
        model_options: of the model.
    """
    metrics.reset()
    cfg = copy.deepcopy(_configuration(str(data_dir), words, norm, tuple(model_options.items())))
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(seed)
    model = perturb(task.build_model(cfg.model))
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


@functools.cache
def _configuration(data_dir: str, words: tuple[str, ...], norm: str, model_options: tuple) -> DictConfig:
    """Read a command line as fairseq-train does."""
    layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS}
    model = vars(arguments(norm, **{**layers, "task": "translation_sharing", **dict(model_options)}))
    command = [data_dir, "--source-lang=en", "--target-lang=de", "--cpu", "--optimizer=adam", "--lr=0.01"]
    command += ["--max-tokens=100", "--clip-norm=1", "--no-progress-bar", *fairseq_arguments(model), *words]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), command))


def sample(seed: int) -> dict:
    """Make a training batch."""
    inputs = batch(seed)
    target = inputs["prev_output_tokens"].roll(-1, 1)
    return {
        **{"id": torch.arange(3), "nsentences": 3, "ntokens": int((target != PAD).sum())},
        **{"target": target, "net_input": inputs},
    }


def train(trainer: Trainer, updates: int, micro_batches: int = 1) -> None:
    """Make updates; the batches depend on the number of the update alone."""
    for _ in range(updates):
        number = trainer.get_num_updates()
        with metrics.aggregate():
            trainer.train_step([sample(100 * number + part) for part in range(micro_batches)])
