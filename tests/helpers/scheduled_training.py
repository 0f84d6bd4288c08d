"""Trainings of tiny models with a sharing schedule in fairseq's trainer."""

from __future__ import annotations

import copy
import functools

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import DictConfig, OmegaConf, flag_override
from tiny_models import PAD, arguments, batch, perturb

from fairseq_sharing import flags

LAYERS = 4


def make_trainer(data_dir, *words: str, norm: str = "pre", seed: int = 1, **model_options) -> Trainer:
    """Create fairseq's trainer for a tiny model with 4 layers.

    Args:
        words: command-line flags of the schedule and the training.
        model_options: options of the model.
    """
    metrics.reset()
    cfg = _configuration(str(data_dir), words, norm, model_options)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(seed)
    model = perturb(task.build_model(cfg.model))
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def _configuration(data_dir: str, words: tuple[str, ...], norm: str, model_options: dict) -> DictConfig:
    """Parse a command line as fairseq-train does."""
    layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS}
    model = vars(arguments(norm, **{**layers, "task": "translation_sharing", **model_options}))
    command = [data_dir, "--source-lang=en", "--target-lang=de", "--cpu", "--optimizer=adam", "--lr=0.01"]
    command += ["--max-tokens=100", "--clip-norm=1", "--no-progress-bar", *flags.words(model), *words]
    args = options.parse_args_and_arch(options.get_training_parser(), command)
    # Hydra takes a third of a second, so one composition is reused for command lines with the same criterion etc.
    cfg = copy.deepcopy(_composed(data_dir, args.criterion, args.optimizer, args.lr_scheduler))
    with flag_override(cfg, ["struct", "allow_objects"], [False, True]):
        for group in cfg.values():
            for name in (group or ()) if OmegaConf.is_dict(group) else ():
                if hasattr(args, name) and not OmegaConf.is_interpolation(group, name):
                    group[name] = getattr(args, name)
        cfg.model = args
    return cfg


@functools.cache
def _composed(data_dir: str, criterion: str, optimizer: str, lr_scheduler: str) -> DictConfig:
    command = [data_dir, "--task=translation_sharing", "--arch=transformer_sharing", "--source-lang=en"]
    command += ["--target-lang=de", f"--criterion={criterion}", f"--optimizer={optimizer}", "--max-tokens=100"]
    command += [f"--lr-scheduler={lr_scheduler}", "--lr=0.01"]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), command))


def sample(seed: int) -> dict:
    """Make a training batch."""
    inputs = batch(seed)
    target = inputs["prev_output_tokens"].roll(-1, 1)
    return {
        **{"id": torch.arange(3), "nsentences": 3, "ntokens": int((target != PAD).sum())},
        **{"target": target, "net_input": inputs},
    }


class TrainingBatches:
    """Replaces fairseq's training iterator for measuring rewards."""

    epoch = 1
    frozen_batches = tuple([number] for number in range(8))

    @property
    def dataset(self):
        return self

    def __getitem__(self, number: int) -> int:
        return 1000 + number

    def collater(self, items: list[int]) -> dict:
        return sample(items[0])


def train(trainer: Trainer, updates: int, micro_batches: int = 1) -> None:
    """Run updates. The batches depend only on the update number."""
    for _ in range(updates):
        number = trainer.get_num_updates()
        with metrics.aggregate():
            trainer.train_step([sample(100 * number + part) for part in range(micro_batches)])


def changes(trainer: Trainer) -> list[dict]:
    """Return the map changes so far."""
    return trainer.task.engine.state_dict()["changes"]


def layer_of(name: str) -> tuple[str, int, str] | None:
    """Split the name of a layer's parameter into stack, layer number and name within the layer."""
    stack, dot, rest = name.partition(".layers.")
    number, _, leaf = rest.partition(".")
    return (stack, int(number), leaf) if dot else None


class Copies:
    """The same training without sharing: fairseq's own transformer with layers that are synchronized explicitly.

    Every layer has its own parameters and moments. The layers of a group get the same gradient. A layer that joins a
    group gets the values and moments of the group's first layer. A layer that leaves a group does not change.

    Args:
        data_dir: directory with the dictionaries.
        like: the shared training, before its first update.
        gradients: ``sum``, ``mean`` or ``root``.
        words: command-line flags of the training.
    """

    # First name components of the parameters that the maps tie; None for all.
    parts: tuple[str, ...] | None = None

    def __init__(self, data_dir, like: Trainer, gradients: str, *words: str, norm: str = "pre"):
        self.trainer = make_trainer(data_dir, *words, norm=norm, arch="transformer")
        self.trainer.task.optimizer_step = self._step
        self._gradients = gradients
        model = like.get_model()
        self._maps = {name: stack.sharing.layer_map for name, stack in model.stacks.items()}
        self._frozen = {name: stack.frozen for name, stack in model.stacks.items()}
        values = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, parameter in self.trainer.get_model().named_parameters():
                parameter.copy_(values[name])

    @property
    def named(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.trainer.get_model().named_parameters(remove_duplicate=False))

    def _ties(self, leaf: str) -> bool:
        return self.parts is None or leaf.split(".")[0] in self.parts

    def _step(self, optimizer, model, update_num) -> None:
        named = self.named
        made = {}
        for name in named:
            if (place := layer_of(name)) is None:
                continue
            stack, number, leaf = place
            labels = self._maps[stack] if self._ties(leaf) else tuple(range(len(self._maps[stack])))
            group = [i for i, label in enumerate(labels) if label == labels[number]]
            members = [named[f"{stack}.layers.{i}.{leaf}"].grad for i in group]
            made[name] = {"sum": sum(members), "mean": sum(members) / len(members), "root": members[0]}[self._gradients]
            if number in self._frozen[stack]:
                made[name] = None
        for name, gradient in made.items():
            named[name].grad = gradient
        optimizer.step()

    def change(self, change: dict) -> None:
        """Apply a change of the shared training."""
        named, state = self.named, self.trainer.optimizer.optimizer.state
        for stack, old in self._maps.items():
            new = tuple(change["after"][stack]["layer_map"])
            for name in named:
                place = layer_of(name)
                if place is None or place[0] != stack or not self._ties(place[2]):
                    continue
                root = new.index(new[place[1]])
                if root == place[1]:
                    continue
                source = named[f"{stack}.layers.{root}.{place[2]}"]
                named[name].data.copy_(source.data)
                state[named[name]] = copy.deepcopy(dict(state[source])) if source in state else {}
            assert len(old) == len(new)
            self._maps[stack] = new
            self._frozen[stack] = tuple(change["after"][stack]["frozen"])

    def assert_same(self, shared: Trainer, tolerance: float = 1e-5) -> None:
        """Compare every layer's weights and Adam's moments."""
        theirs, named = dict(shared.get_model().named_parameters(remove_duplicate=False)), self.named
        states = [t.optimizer.optimizer.state for t in (self.trainer, shared)]
        for name, parameter in named.items():
            torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=tolerance, msg=name)
            ours, other = states[0].get(parameter, {}), states[1].get(theirs[name], {})
            assert ours.get("step") == other.get("step"), name
            for moment in ("exp_avg", "exp_avg_sq") if ours else ():
                torch.testing.assert_close(other[moment], ours[moment], rtol=1e-3, atol=tolerance, msg=name)
