"""The memory of a training step, in bytes, told before it is made: the real model and criterion run without storage.

Every tensor has its size and nothing in it. What a forward and a backward pass allocate and free is counted while they
run, so that all that a configuration changes is in the figures: kernels, dropout masks, recomputation, the loss.
"""

from __future__ import annotations

import weakref
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import criterions
from fairseq.data import Dictionary
from fairseq.modules import FairseqDropout, MultiheadAttention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairseq_sharing.errors import SharingError
from fairseq_sharing.modules.dropout import FastDropout
from fairseq_sharing.modules.fast_attention import FastAttention

DEVICES = ("cuda", "cpu")
# Tensors of the weight's size that fairseq's optimizers keep; one that is not named here is taken for Adam.
OPTIMIZER_STATES = {"adam": 2, "fused_adam": 2, "adamax": 2, "nag": 1, "adagrad": 1, "adadelta": 2, "sgd": 0}
# Tokens of the counted batch where the configuration names none.
TOKENS = 4096
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
    """What a configuration takes, in bytes, and what fits.

    Args:
        activations_a_token: what one more source and one more target token keep for the backward pass.
        tokens: source tokens, and target tokens, of the configuration's longest batch; None where it names none.
        workspace: of that batch.
        peak: of that batch.
        longest_batch: tokens, padding included, of each side of the longest batch that fits.
    """

    activations_a_token: int
    tokens: int | None
    workspace: int | None
    peak: int | None
    longest_batch: int


def stand_in_task(vocabulary: int) -> Namespace:
    """Make what a model and a criterion ask a task for: a joined dictionary of that many symbols."""
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"{number}")
    return Namespace(source_dictionary=dictionary, target_dictionary=dictionary)


class TrainingStep:
    """A model and its criterion without storage, whose training steps are counted.

    fairseq's ``--fp16``, ``--bf16`` and ``--amp`` are counted as fp32; ``--precision bf16`` as it is.

    Args:
        args: fairseq's arguments.
        vocabulary: symbols of the joined dictionary.
        device: ``cuda`` or ``cpu``; neither is needed.
    """

    def __init__(self, args: Namespace, vocabulary: int, device: str):
        from fairseq.models import ARCH_MODEL_REGISTRY

        task = stand_in_task(vocabulary)
        self._mode = FakeTensorMode()
        with self._mode:
            self._model = ARCH_MODEL_REGISTRY[args.arch].build_model(Namespace(**vars(args)), task).train()
            self._criterion = criterions.build_criterion(Namespace(**{"criterion": "cross_entropy", **vars(args)}), task)
        self._model.admin_pending = False  # the pass that sets Admin's weights keeps nothing
        self._states = OPTIMIZER_STATES.get(str(getattr(args, "optimizer", None)), 2)
        if device == "cuda":
            _use_cuda_kernels(self._model)

    def count(self, tokens: int, length: int) -> StepMemory:
        """Run a step and count.

        Args:
            tokens: of the source and of the target side, rounded down to whole sentences, but one at least.
            length: tokens of a sentence.
        """
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        with ExitStack() as stack:
            # fairseq reads a shape in a way that looks at memory.
            for mode in (self._mode, _Replaced({torch._shape_as_tensor: lambda x: tuple(x.shape)})):
                stack.enter_context(mode)
            allocations = stack.enter_context(_Allocations())
            for parameter in self._model.parameters():
                allocations.add(parameter)
            weights = allocations.alive
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            static = allocations.alive
            sample = self._sample(max(1, tokens // length), length)
            loss = self._criterion(self._model, sample)[0]
            activations = allocations.alive - static
            loss.backward()
            for parameter in parameters:
                parameter.grad = None
        return StepMemory(
            weights=weights,
            gradients=static - weights,
            optimizer=self._states * (static - weights),
            activations=activations,
            workspace=allocations.peak - static - activations,
        )

    def _sample(self, sentences: int, length: int) -> dict[str, Any]:
        words = torch.full((sentences, length), _WORD)
        inputs = {"src_tokens": words, "src_lengths": words[:, 0]}
        if hasattr(self._model, "encoder") and hasattr(self._model, "decoder"):
            inputs["prev_output_tokens"] = words
        return {"net_input": inputs, "target": words, "ntokens": words.numel(), "nsentences": sentences}


def estimate(args: Namespace, vocabulary: int, length: int, memory: float, device: str) -> MemoryEstimate:
    """Tell what a configuration takes in training, and the longest batch that a device holds.

    Args:
        args: fairseq's arguments.
        vocabulary: symbols of the joined dictionary.
        length: source and target tokens of a sentence.
        memory: bytes of the device.
        device: ``cuda`` or ``cpu``.

    Raises:
        SharingError: a bad option, or a model whose sizes depend on what it computes.
    """
    step = TrainingStep(args, vocabulary, device)
    tokens = getattr(args, "max_tokens", None)
    if not tokens and getattr(args, "batch_size", None) and getattr(args, "tokens_per_sample", None):
        tokens = args.batch_size * args.tokens_per_sample
    first, longest, second = _fit(step, tokens or TOKENS, length, memory)
    return MemoryEstimate(
        activations_a_token=second,
        tokens=tokens,
        workspace=first.workspace if tokens else None,
        peak=first.peak if tokens else None,
        longest_batch=longest,
    )
