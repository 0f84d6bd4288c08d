"""Estimate the memory of a training step by running the actual model and criterion without storage.

Every tensor has a shape but no values. The allocations of a forward and a backward pass are counted while they run, so
the estimate includes everything that a configuration changes: kernels, dropout masks, recomputation, the loss.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import criterions
from fairseq.data import Dictionary
from fairseq.modules import FairseqDropout, MultiheadAttention
from torch import Tensor, nn

from fairseq_sharing.description.sizes_only import Allocations, Replaced
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.attention import FastAttention
from fairseq_sharing.fast.dropout import FastDropout

logger = logging.getLogger(__name__)

DEVICES = ("cuda", "cpu")
# Number of state tensors per weight in fairseq's optimizers; other optimizers are counted as Adam.
OPTIMIZER_STATES = {"adam": 2, "fused_adam": 2, "adamax": 2, "nag": 1, "adagrad": 1, "adadelta": 2, "sgd": 0}
# Tokens of the batch if the configuration sets none.
TOKENS = 4096
# Search for the longest batch: tokens of the first batch, maximum growth factor per iteration, maximum iterations,
# relative tolerance.
_FIRST, _STRETCH, _SECANTS, _CLOSE = 1 << 15, 4, 4, 0.005
_FP32 = 4  # bytes of a value
_WORD = 5  # any symbol that is not special


@dataclass(frozen=True)
class StepMemory:
    """The peak memory of a training step, in bytes.

    The gradients are assumed to exist from the beginning of the step, as in an update of several steps or on several
    devices. An update of one step on one device has no gradients yet at the peak.

    Args:
        weights: the weights, with shared weights counted once.
        gradients: the gradients of the weights.
        optimizer: the optimizer state.
        activations: the tensors that the forward pass saves for the backward pass.
        workspace: the rest of the peak: temporary tensors, mainly the output logits, and buffers.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def static(self) -> int:
        """The bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The sum of all parts."""
        return self.static + self.activations + self.workspace


@dataclass(frozen=True)
class MemoryEstimate:
    """The training memory of a configuration, in bytes, and the longest batch that fits.

    Args:
        tokens: tokens per side of the largest batch of the configuration, including padding; 4,096 if it sets none.
        static: weights, gradients and optimizer state.
        activations_a_token: saved activations per additional source and target token.
        workspace: workspace of that batch.
        peak: peak of that batch.
        longest_batch: tokens per side, including padding, of the longest batch that fits; 0 if none fits.
    """

    tokens: int
    static: int
    activations_a_token: int
    workspace: int
    peak: int
    longest_batch: int


def dummy_task(vocabulary: int) -> Namespace:
    """Make a dummy task for building a model and a criterion: a joined dictionary with ``vocabulary`` symbols."""
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"{number}")
    return Namespace(source_dictionary=dictionary, target_dictionary=dictionary)


def make_sample(model: Any, words: Tensor) -> dict[str, Any]:
    """Make a batch without padding for a model.

    Args:
        model: an encoder-decoder model, a language model or an encoder.
        words: the tokens of both sides, (sentences, length).
    """
    inputs = {"src_tokens": words, "src_lengths": words[:, 0]}
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        inputs["prev_output_tokens"] = words
    return {"net_input": inputs, "target": words, "ntokens": words.numel(), "nsentences": len(words)}


class TrainingStep:
    """Count the memory of training steps of a model and its criterion, which are built without storage.

    fairseq's ``--fp16``, ``--bf16`` and ``--amp`` are counted as fp32, and ``--compile`` is ignored. ``--precision
    bf16`` is counted as bf16.

    Args:
        args: fairseq's arguments.
        vocabulary: size of the joined dictionary.
        device: ``cuda`` or ``cpu``; it need not be available.
    """

    def __init__(self, args: Namespace, vocabulary: int, device: str):
        from fairseq.models import ARCH_MODEL_REGISTRY

        task = dummy_task(vocabulary)
        # One criterion rejects fairseq's default --ddp-backend. The backend does not affect sizes here.
        options = {"criterion": "cross_entropy", **vars(args), "ddp_backend": "legacy_ddp", "compile": False}
        self._allocations = Allocations()
        if getattr(args, "teacher", ""):
            raise SharingError(f"--teacher {args.teacher}: the memory of a teacher is not estimated; omit the teacher")
        with self._allocations:
            self._model = ARCH_MODEL_REGISTRY[args.arch].build_model(Namespace(**options), task).train()
            self._criterion = criterions.build_criterion(Namespace(**options), task)
        if hasattr(self._model, "expert_banks") and self._model.expert_banks():
            raise SharingError(f"--arch {args.arch}: the memory of experts depends on the tokens routed to them")
        self._model.admin_pending = False  # Admin's initialization pass saves no activations
        self._states = OPTIMIZER_STATES.get(str(getattr(args, "optimizer", None)), 2)
        if device == "cuda":
            _use_cuda_kernels(self._model)

    def count(self, tokens: int, length: int) -> StepMemory:
        """Run a training step and count its memory.

        Args:
            tokens: tokens per side, rounded down to whole sentences, at least one sentence.
            length: tokens per sentence.

        Raises:
            SharingError: sizes depend on values that the model or the criterion computes.
        """
        allocations = self._allocations
        parameters = list(self._model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        weights, gradients = (_FP32 * sum(p.numel() for p in some) for some in (parameters, trained))
        buffers = allocations.alive - weights
        # fairseq calls _shape_as_tensor, which reads memory.
        with allocations, Replaced({torch._shape_as_tensor: lambda x: tuple(x.shape)}):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            before = allocations.peak = allocations.alive
            words = torch.full((max(1, tokens // length), length), _WORD)
            loss = self._criterion(self._model, make_sample(self._model, words))[0]
            activations = allocations.alive - before
            loss.backward()
            for parameter in trained:
                parameter.grad = None
        workspace = buffers + allocations.peak - before - activations
        return StepMemory(weights, gradients, self._states * gradients, activations, workspace)


def estimate(args: Namespace, vocabulary: int, length: int, memory: float, device: str) -> MemoryEstimate:
    """Estimate the training memory of a configuration and the longest batch that fits.

    Args:
        args: fairseq's arguments.
        vocabulary: size of the joined dictionary.
        length: source and target tokens per sentence.
        memory: available memory, in bytes.
        device: ``cuda`` or ``cpu``.

    Raises:
        SharingError: an invalid option, or a model whose sizes depend on values that it computes.
    """
    step = TrainingStep(args, vocabulary, device)
    tokens = getattr(args, "max_tokens", None)
    if tokens is None:
        sentences, block = getattr(args, "batch_size", None), getattr(args, "tokens_per_sample", None)
        tokens = sentences * block if sentences and block else TOKENS
    counted = step.count(tokens, length)
    # The peak is piecewise linear in the batch length: logits are computed in chunks, and longer batches peak at a
    # different point of the step. Hence a secant search, which stops when the peak is linear up to the result.
    guess = int(tokens * (memory - counted.static) / (counted.peak - counted.static))
    many = max(2 * length, min(guess, _FIRST)) // length * length
    few = many // 2 // length * length
    more, less = step.count(many, length), step.count(few, length)
    per_token = (more.activations - less.activations) // (many - few)
    for _ in range(_SECANTS):
        slope = (more.peak - less.peak) / (many - few)
        longest = max(0, int(many + (memory - more.peak) / slope) // length * length)
        if not longest or abs(longest - many) <= _CLOSE * many:
            break
        few, less, many = many, more, min(longest, _STRETCH * many)
        more = step.count(many, length)
        bent = more.peak - less.peak - slope * (many - few)
        if abs(bent) <= _CLOSE * more.peak and many < longest:
            break
    return MemoryEstimate(
        tokens=tokens,
        static=counted.static,
        activations_a_token=per_token,
        workspace=counted.workspace,
        peak=counted.peak,
        longest_batch=longest,
    )


def estimate_both(
    args: Namespace, vocabulary: int, length: int, memory: float, device: str
) -> dict[str, MemoryEstimate | None]:
    """Estimate the memory with activations ``stored`` and ``recomputed`` (``--checkpoint-activations``).

    Args: those of ``estimate``.

    Returns:
        The two estimates; None if the memory cannot be estimated.
    """
    estimates: dict[str, MemoryEstimate | None] = {}
    for activations, recompute in {"stored": False, "recomputed": True}.items():
        changed = Namespace(**{**vars(args), "checkpoint_activations": recompute})
        try:
            estimates[activations] = estimate(changed, vocabulary, length, memory, device)
        except SharingError as error:
            logger.info(f"no memory estimate with {activations} activations: {error}")
            estimates[activations] = None
    return estimates


class _CudaDropout(FairseqDropout):
    """Dropout with a mask of one byte per element, as torch saves it on CUDA."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if self.p > 0 and (self.training or self.apply_during_inference):
            return torch.native_dropout(x, self.p, True)[0]
        return x


class _CudaAttention(FastAttention):
    """``FastAttention`` in the autocast precision, which it uses on all devices except the CPU."""

    def _project(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        with Replaced({Tensor.float: lambda projected: projected}):
            return super()._project(x, *names)


def _use_cuda_kernels(model: nn.Module) -> None:
    """Make a model on CPU save the same tensors for the backward pass as on CUDA."""
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            # Fused CUDA attention saves no dropout mask. The CPU kernel without dropout saves the same sizes.
            module.dropout_module.p = 0.0
        elif type(module) in (FairseqDropout, FastDropout):
            module.__class__ = _CudaDropout
        if type(module) is FastAttention:
            module.__class__ = _CudaAttention
