"""The input of the classifier: the mean of the encoder's states, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_sharing.errors import SharingError
from fairseq_sharing.sentence_depth.classifier import DepthClassifier


def in_batches(
    dataset: Any, max_tokens: int, device: str = "cpu", numbers: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the batches of a dataset, sentences of similar length together; ``id`` numbers the sentences.

    Args:
        dataset: a pair dataset of fairseq.
        max_tokens: tokens per batch, including padding; a longer sentence is a batch of its own.
        device: ``cpu`` or ``cuda``.
        numbers: the sentences to use; None for all.
    """
    from fairseq import utils

    # fairseq would order sentences of equal length at random, and rounding depends on the batch.
    dataset.shuffle = False
    order = dataset.ordered_indices()
    if numbers is not None:
        order = order[np.isin(order, numbers)]
    limit = max([max_tokens, *dataset.num_tokens_vec(order).tolist()])
    for indices in dataset.batch_by_size(order, max_tokens=limit):
        batch = dataset.collater([dataset[index] for index in indices])
        yield utils.move_to_cuda(batch) if device == "cuda" else batch


def within_positions(dataset: Any, model: Any) -> list[int]:
    """Return the numbers of the sentences that have no more tokens than the model has positions."""
    limits = np.array(model.max_positions())
    sizes = np.asarray(dataset.sizes).reshape(len(dataset), -1)
    return np.flatnonzero((sizes <= limits[: sizes.shape[1]]).all(1)).tolist()


def refuse_too_long(dataset: Any, model: Any, name: str) -> None:
    """Refuse a dataset with a sentence that has more tokens than the model has positions.

    Args:
        dataset: a pair dataset of fairseq.
        model: the model.
        name: the dataset, for the error message.

    Raises:
        SharingError: with the line of the first one.
    """
    fitting = set(within_positions(dataset, model))
    for number in range(len(dataset)):
        if number not in fitting:
            sizes = " and ".join(map(str, np.atleast_1d(dataset.sizes[number])))
            limits = " and ".join(map(str, model.max_positions()))
            raise SharingError(
                f"{name}: line {number + 1} has {sizes} source and target subwords with the end of sentence; "
                f"allowed: at most {limits}, the run's train.max_source_positions and train.max_target_positions"
            )


@torch.no_grad()
def mean_states(model: Any, depth: int, inputs: Mapping[str, Any]) -> Tensor:
    """Return the mean of the encoder's states over the tokens of each sentence, without padding.

    Args:
        model: a model in evaluation mode; its depth is that of the encoder afterwards.
        depth: the number of layers of the encoder that run.
        inputs: ``src_tokens`` and ``src_lengths`` of a batch.

    Returns:
        Sentences x width, on the CPU.
    """
    model.use_depth({"encoder": depth})
    encoded = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
    states = encoded["encoder_out"][0]  # T x B x C
    keep = inputs["src_tokens"].ne(model.encoder.padding_idx).T.unsqueeze(2).to(states)
    return ((states * keep).sum(0) / keep.sum(0)).cpu()


def choose_depths(model: Any, classifier: DepthClassifier, batches: Iterable[dict[str, Any]], count: int) -> list[int]:
    """Choose the setting of each sentence.

    Args:
        model: the model of the classifier; afterwards it runs all layers.
        classifier: the classifier.
        batches: batches of sentences, which ``id`` numbers from 0.
        count: number of sentences.

    Returns:
        The index of the setting of each sentence.
    """
    chosen = [0] * count
    for batch in batches:
        found = classifier.choose(mean_states(model, classifier.encoder_depth, batch["net_input"]))
        for number, index in zip(batch["id"].tolist(), found, strict=True):
            chosen[number] = index
    model.use_depth(None)
    return chosen
