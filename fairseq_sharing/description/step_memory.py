"""The memory of a training step, in bytes, told before it is made: the real model and criterion run without storage.

Every tensor has its size and nothing in it. What a forward and a backward pass allocate and free is counted while they
run, so that all that a configuration changes is in the figures: kernels, dropout masks, recomputation, the loss.
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
# Tensors of the weight's size that fairseq's optimizers keep; one that is not named here is taken for Adam.
OPTIMIZER_STATES = {"adam": 2, "fused_adam": 2, "adamax": 2, "nag": 1, "adagrad": 1, "adadelta": 2, "sgd": 0}
# Tokens of the counted batch where the configuration names none.
TOKENS = 4096
# In the search for the longest batch: tokens of the first, how many times as long the next may be, how many are tried,
# and the share of it that does not matter.
_FIRST, _STRETCH, _SECANTS, _CLOSE = 1 << 15, 4, 4, 0.005
_FP32 = 4  # bytes of a value
_WORD = 5  # any that is no special symbol


@dataclass(frozen=True)
class StepMemory:
    """What a training step holds when it holds most, in bytes.

    The gradients are those of an update of several steps, or on several devices: there from the step's beginning. An
    update of one step on one device has none yet at the peak.

    Args:
        weights: each shared one once.
        gradients: of the weights.
        optimizer: its state.
        activations: what the forward pass keeps for the backward pass.
        workspace: the rest of the peak: what is soon freed, above all the scores of the vocabulary; and buffers.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def static(self) -> int:
        """Bytes whatever the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """All parts together."""
        return self.static + self.activations + self.workspace


@dataclass(frozen=True)
class MemoryEstimate:
    """What a configuration takes in training, in bytes, and the longest batch that fits.

    Args:
        tokens: of each side of the configuration's longest batch, padding included; 4,096 where it names none.
        static: weights, gradients and optimizer.
        activations_a_token: what one more source and one more target token keep for the backward pass.
        workspace: of that batch.
        peak: of that batch.
        longest_batch: tokens of each side, padding included, of the longest batch that fits; 0 if none does.
    """

    tokens: int
    static: int
    activations_a_token: int
    workspace: int
    peak: int
    longest_batch: int


def stand_in_task(vocabulary: int) -> Namespace:
    """Make what a model and a criterion ask a task for: a joined dictionary of that many symbols."""
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"{number}")
    return Namespace(source_dictionary=dictionary, target_dictionary=dictionary)


class TrainingStep:
    """A model and its criterion without storage, whose training steps are counted.

    fairseq's ``--fp16``, ``--bf16`` and ``--amp`` are counted as fp32, ``--compile`` as not compiled; ``--precision
    bf16`` as it is.

    Args:
        args: fairseq's arguments.
        vocabulary: symbols of the joined dictionary.
        device: ``cuda`` or ``cpu``; neither is needed.
    """

    def __init__(self, args: Namespace, vocabulary: int, device: str):
        from fairseq.models import ARCH_MODEL_REGISTRY

        task = stand_in_task(vocabulary)
        # Of the ways to train on several devices one criterion refuses fairseq's default; it changes no size here.
        options = {"criterion": "cross_entropy", **vars(args), "ddp_backend": "legacy_ddp", "compile": False}
        self._allocations = Allocations()
        with self._allocations:
            self._model = ARCH_MODEL_REGISTRY[args.arch].build_model(Namespace(**options), task).train()
            self._criterion = criterions.build_criterion(Namespace(**options), task)
        if hasattr(self._model, "expert_banks") and self._model.expert_banks():
            raise SharingError(f"--arch {args.arch}: what experts take depends on the tokens that choose them")
        self._model.admin_pending = False  # the pass that sets Admin's weights keeps nothing
        self._states = OPTIMIZER_STATES.get(str(getattr(args, "optimizer", None)), 2)
        if device == "cuda":
            _use_cuda_kernels(self._model)

    def count(self, tokens: int, length: int) -> StepMemory:
        """Run a step and count.

        Args:
            tokens: of the source and of the target side, rounded down to whole sentences, but one at least.
            length: tokens of a sentence.

        Raises:
            SharingError: sizes depend on what the model or the criterion computes.
        """
        allocations = self._allocations
        parameters = list(self._model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        weights, gradients = (_FP32 * sum(p.numel() for p in some) for some in (parameters, trained))
        buffers = allocations.alive - weights
        # fairseq reads a shape in a way that looks at memory.
        with allocations, Replaced({torch._shape_as_tensor: lambda x: tuple(x.shape)}):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            before = allocations.peak = allocations.alive
            loss = self._criterion(self._model, self._sample(max(1, tokens // length), length))[0]
            activations = allocations.alive - before
            loss.backward()
            for parameter in trained:
                parameter.grad = None
        workspace = buffers + allocations.peak - before - activations
        return StepMemory(weights, gradients, self._states * gradients, activations, workspace)

    def _sample(self, sentences: int, length: int) -> dict[str, Any]:
        words = torch.full((sentences, length), _WORD)
        inputs = {"src_tokens": words, "src_lengths": words[:, 0]}
        if hasattr(self._model, "encoder") and hasattr(self._model, "decoder"):
            inputs["prev_output_tokens"] = words
        return {"net_input": inputs, "target": words, "ntokens": words.numel(), "nsentences": sentences}


def estimate(args: Namespace, vocabulary: int, length: int, memory: float, device: str) -> MemoryEstimate:
    """Tell what a configuration takes in training, and the longest batch that fits.

    Args:
        args: fairseq's arguments.
        vocabulary: symbols of the joined dictionary.
        length: source and target tokens of a sentence.
        memory: bytes that a training may take.
        device: ``cuda`` or ``cpu``.

    Raises:
        SharingError: a bad option, or a model whose sizes depend on what it computes.
    """
    step = TrainingStep(args, vocabulary, device)
    tokens = getattr(args, "max_tokens", None)
    if tokens is None:
        sentences, block = getattr(args, "batch_size", None), getattr(args, "tokens_per_sample", None)
        tokens = sentences * block if sentences and block else TOKENS
    told = step.count(tokens, length)
    # Peaks grow in straight lines with bends: the scores are made some positions at a time, and it is at another moment
    # that a step of a longer batch holds most. So the batch is looked for along secants, up to where they are straight.
    guess = int(tokens * (memory - told.static) / (told.peak - told.static))
    many = max(2 * length, min(guess, _FIRST)) // length * length
    few = many // 2 // length * length
    more, less = step.count(many, length), step.count(few, length)
    a_token = (more.activations - less.activations) // (many - few)
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
        static=told.static,
        activations_a_token=a_token,
        workspace=told.workspace,
        peak=told.peak,
        longest_batch=longest,
    )


def estimate_both(
    args: Namespace, vocabulary: int, length: int, memory: float, device: str
) -> dict[str, MemoryEstimate | None]:
    """Estimate with activations ``stored``, and ``recomputed`` (``--checkpoint-activations``); None if nobody can tell.

    Args: those of ``estimate``.
    """
    told: dict[str, MemoryEstimate | None] = {}
    for way, recompute in {"stored": False, "recomputed": True}.items():
        changed = Namespace(**{**vars(args), "checkpoint_activations": recompute})
        try:
            told[way] = estimate(changed, vocabulary, length, memory, device)
        except SharingError as error:
            logger.info(f"no estimate of memory, {way}: {error}")
            told[way] = None
    return told


class _CudaDropout(FairseqDropout):
    """Dropout with a mask of a byte an element, as torch keeps it on CUDA."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if self.p > 0 and (self.training or self.apply_during_inference):
            return torch.native_dropout(x, self.p, True)[0]
        return x


class _CudaAttention(FastAttention):
    """``FastAttention`` in the precision of autocast, as it is elsewhere than on CPU."""

    def _project(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        with Replaced({Tensor.float: lambda projected: projected}):
            return super()._project(x, *names)


def _use_cuda_kernels(model: nn.Module) -> None:
    """Let a model on CPU keep for the backward pass what it keeps on CUDA."""
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            # Fused attention draws its mask of the probabilities anew; the one for CPU, of the same sizes, has none.
            module.dropout_module.p = 0.0
        elif type(module) in (FairseqDropout, FastDropout):
            module.__class__ = _CudaDropout
        if type(module) is FastAttention:
            module.__class__ = _CudaAttention
