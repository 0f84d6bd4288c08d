"""Tiny models of the test cases, the equivalent fairseq models, and inputs."""

from __future__ import annotations

import copy
import functools
import io
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import torch
from fairseq import models, options, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.sequence_generator import SequenceGenerator
from fairseq.trainer import Trainer
from omegaconf import DictConfig, flag_override
from sharing_cases import LAYERS, Case
from torch import nn

import fairseq_sharing
from fairseq_sharing.checkpoints.sharing_state import find_aliases

fairseq_sharing.register()

EMBED, FFN, HEADS, VOCABULARY = 16, 32, 2, 50
PAD, EOS = 1, 2
EMBEDDING_ALIASES = {
    "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
    "decoder.output_projection.weight": "encoder.embed_tokens.weight",
}


def dictionary() -> Dictionary:
    """Create a dictionary of 50 symbols, including fairseq's four special ones."""
    made = Dictionary()
    for number in range(VOCABULARY - len(made)):
        made.add_symbol(f"w{number}")
    return made


def arguments(norm: str = "post", arch: str = "transformer_sharing", **changes) -> Namespace:
    """Return the arguments of a tiny model with one matrix for both embeddings and the output projection."""
    tiny = {"dropout": 0.0, "share_all_embeddings": True, "max_source_positions": 64, "max_target_positions": 64}
    for stack in ("encoder", "decoder"):
        tiny[f"{stack}_embed_dim"] = EMBED
        tiny[f"{stack}_ffn_embed_dim"] = FFN
        tiny[f"{stack}_attention_heads"] = HEADS
        tiny[f"{stack}_layers"] = LAYERS
        tiny[f"{stack}_normalize_before"] = norm == "pre"
    return Namespace(arch=arch, **{**tiny, **changes})


def build(norm: str = "post", *, seed: int = 1, arch: str = "transformer_sharing", **changes) -> nn.Module:
    """Build a tiny model from a seed."""
    torch.manual_seed(seed)
    symbols = dictionary()
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols)
    return models.build_model(arguments(norm, arch, **changes), task)


def build_case(case: Case, norm: str, *, seed: int = 1, **changes) -> nn.Module:
    """Build the model of a case with perturbed weights."""
    return perturb(build(norm, seed=seed, **case.options, **changes))


def perturb(model: nn.Module, seed: int = 7) -> nn.Module:
    """Perturb every parameter, including LayerNorm weights (initially 1) and biases (initially 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def vanilla_copy(case: Case, model: nn.Module, norm: str, **changes) -> nn.Module:
    """Build fairseq's own transformer with N layers and copies of the weights that the case's map assigns."""
    stock = build(norm, arch="transformer", seed=99, **changes)
    ours = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(ours[case.source(name)])
    return stock


def batch(seed: int = 3) -> dict[str, torch.Tensor]:
    """Create a batch of 3 sentences of different lengths: sources padded on the left, targets on the right."""
    generator = torch.Generator().manual_seed(seed)

    def sentences(lengths: tuple[int, ...], left: bool) -> torch.Tensor:
        rows = torch.full((len(lengths), max(lengths)), PAD)
        for row, length in zip(rows, lengths, strict=True):
            words = torch.randint(4, VOCABULARY, (length,), generator=generator)
            words[-1 if left else 0] = EOS
            row[-length:] = words if left else row[-length:]
            if not left:
                row[:length] = words
        return rows

    return {
        "src_tokens": sentences((7, 5, 3), left=True),
        "src_lengths": torch.tensor([7, 5, 3]),
        "prev_output_tokens": sentences((6, 8, 4), left=False),
    }


def loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum a loss that weights every output differently over all tokens except for padding."""
    log_probs = model.get_normalized_probs(model(**inputs), log_probs=True)
    weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
    return (log_probs * weights)[inputs["prev_output_tokens"] != PAD].sum()


@functools.cache
def _configuration(data_dir: str, optimizer: str, criterion: str) -> DictConfig:
    """Parse a command line as fairseq-train does."""
    words = [data_dir, "--task=translation", "--source-lang=en", "--target-lang=de", "--cpu", "--arch=transformer"]
    words += [f"--optimizer={optimizer}", f"--criterion={criterion}", "--max-tokens=100", "--no-progress-bar"]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))


def make_trainer(
    data_dir,
    case: Case,
    norm: str = "post",
    *,
    arch: str = "transformer_sharing",
    optimizer: str = "adam",
    criterion: str = "cross_entropy",
    lr: float = 0.01,
    adam_eps: float = 1e-8,
    **changes,
) -> Trainer:
    """Create fairseq's trainer for the model of a case."""
    cfg = copy.deepcopy(_configuration(str(data_dir), optimizer, criterion))
    with flag_override(cfg, ["struct", "allow_objects"], [False, True]):
        cfg.model = arguments(norm, arch, **case.options, **changes)
        cfg.optimization.lr = [lr]
        cfg.optimizer.adam_eps = adam_eps
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = perturb(task.build_model(cfg.model))
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def train_step(trainer: Trainer, seed: int = 3) -> None:
    """Run one update on the batch of a seed."""
    inputs = batch(seed)
    target = inputs["prev_output_tokens"].roll(-1, 1)
    sample = {"id": torch.arange(3), "nsentences": 3, "ntokens": int((target != PAD).sum()), "target": target}
    with metrics.aggregate():
        trainer.train_step([{**sample, "net_input": inputs}])


def save(trainer: Trainer, path: Path) -> Path:
    """Write the trainer's checkpoint as fairseq-train does."""
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(path), {"train_iterator": {"epoch": 1}})
    return path


def translate(models_: list[nn.Module], **settings) -> list[list[dict]]:
    """Translate the sources of the batch by beam search, 8 to 12 tokens each."""
    generator = SequenceGenerator(models_, dictionary(), beam_size=4, min_len=8, max_len_b=12, **settings)
    sources = {key: batch()[key] for key in ("src_tokens", "src_lengths")}
    return generator.generate(models_, {"net_input": sources})


def assert_same_translations(ours: list[list[dict]], theirs: list[list[dict]]) -> None:
    """Compare tokens and scores of two runs of ``translate``."""
    for one, other in zip(ours, theirs, strict=True):
        assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in other]
        scores = [[h["positional_scores"] for h in hypotheses] for hypotheses in (one, other)]
        torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
        assert max(len(h["tokens"]) for h in one) >= 8, "too short for a meaningful test"


def tensors(state) -> dict[str, torch.Tensor]:
    """Return only the tensors of a state dict."""
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


def to_bytes(obj) -> bytes:
    """Return the bytes of the file that torch writes."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def assert_equal_models(one: nn.Module, other: nn.Module) -> None:
    """Compare names, values and ties."""
    names = [dict(model.named_parameters(remove_duplicate=False)) for model in (one, other)]
    assert names[0].keys() == names[1].keys()
    assert all(torch.equal(value, names[1][name]) for name, value in names[0].items())
    assert find_aliases(one) == find_aliases(other)


def assert_tied(case: Case, model: nn.Module) -> None:
    """Check that every name refers to the Parameter that the case's map, or the shared embedding, assigns to it."""
    names = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in names.items():
        assert parameter is names[EMBEDDING_ALIASES.get(name, case.source(name))], name


def component_sizes(stack: str) -> dict[str, int]:
    """Count the values of one layer by scope, from the definition of the Transformer."""
    attention = 4 * (EMBED * EMBED + EMBED)
    sizes = {
        "self_attn": attention,
        "ffn": EMBED * FFN + FFN + FFN * EMBED + EMBED,
        "layer_norm": 2 * 2 * EMBED,
    }
    if stack == "decoder":
        sizes["encoder_attn"] = attention
        sizes["layer_norm"] += 2 * EMBED
    return sizes
