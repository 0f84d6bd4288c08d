"""Train the classifier of a finished model, whose weights stay fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairseq_sharing.errors import SharingError
from fairseq_sharing.sentence_depth.classifier import DepthClassifier, layers_of
from fairseq_sharing.sentence_depth.costs import Costs
from fairseq_sharing.sentence_depth.file import write_classifier
from fairseq_sharing.sentence_depth.fit import fit
from fairseq_sharing.sentence_depth.model import load_model, load_subset
from fairseq_sharing.sentence_depth.states import in_batches, mean_states, within_positions
from fairseq_sharing.sentence_depth.targets import best_depths, sentence_scores

MAX_TOKENS = 4000  # per batch
HELD_OUT = 10  # one sentence in so many is not fitted
LEAST = 2 * HELD_OUT


@dataclass(frozen=True)
class Outcome:
    """What the training of a classifier gave.

    Attributes:
        file: the classifier.
        settings: its depths.
        sentences: number of sentences, and of those among them that were not fitted.
        held_out: see ``sentences``; all following values are about these.
        scores: the mean score at each depth.
        best: for how many sentences each depth is the best.
        chosen: for how many sentences the classifier chooses each depth.
        score: the mean score at the chosen depths.
        layers: the mean number of layers at the chosen depths, in all stacks.
        agreement: share of the sentences for which the classifier chooses the best depth.
    """

    file: Path
    settings: tuple[dict[str, int], ...]
    sentences: int
    held_out: int
    scores: tuple[float, ...]
    best: tuple[int, ...]
    chosen: tuple[int, ...]
    score: float
    layers: float
    agreement: float


def train_classifier(
    checkpoint: Path,
    data: Path,
    languages: Mapping[str, str],
    measure: Callable[[list[dict[str, int]], int], Costs],
    *,
    target: str = "likelihood",
    penalty: float,
    subset: str = "valid",
    sentences: int | None = None,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> Outcome:
    """Train the classifier of a checkpoint and write it beside the checkpoint.

    Args:
        checkpoint: the model, which is not changed.
        data: the folder of its binarized data.
        languages: language code of each side ("source", "target").
        measure: measures the costs of settings, given also the size of the target dictionary.
        target: the score whose best depth is learned; see ``sentence_scores``.
        penalty: see ``best_depths``.
        subset: the sentences to learn from.
        sentences: use at most this number of sentences, evenly spaced.
        device: ``cpu`` or ``cuda``.
        advance: called with the number of sentences completed since the last call.

    Returns:
        The classifier's file, and what it gives on held-out sentences.

    Raises:
        SharingError: the model has one depth, or there are too few sentences.
    """
    model, task = load_model(checkpoint, data, languages)
    if device == "cuda":
        model.cuda()
    settings = sorted((dict(setting) for setting in model.depths.settings), key=layers_of)
    costs = measure(settings, len(task.target_dictionary))
    dataset = load_subset(task, subset, data)
    numbers = _spaced(within_positions(dataset, model), sentences)
    if len(numbers) < LEAST:
        raise SharingError(f"--subset {subset}: {len(numbers)} sentences; allowed: at least {LEAST}")
    encoder = min(setting["encoder"] for setting in settings)
    means: dict[int, Tensor] = {}
    scores: dict[int, Tensor] = {}
    for batch in in_batches(dataset, MAX_TOKENS, device, numbers):
        ids = batch["id"].tolist()
        means |= zip(ids, mean_states(model, encoder, batch["net_input"]), strict=True)
        scores |= zip(ids, sentence_scores(model, settings, batch, target), strict=True)
        if advance is not None:
            advance(len(ids))
    inputs, of_depths = (torch.stack([values[number] for number in numbers]) for values in (means, scores))
    best = torch.tensor(best_depths(of_depths, settings, penalty))
    held_out = torch.arange(len(numbers)) % HELD_OUT == HELD_OUT - 1
    weight, bias = fit(inputs, best, len(settings), held_out)
    training = {"target": target, "penalty": penalty, "subset": subset, "sentences": len(numbers)}
    classifier = DepthClassifier(tuple(settings), weight, bias, costs, training)
    file = write_classifier(classifier, checkpoint)
    return _outcome(file, classifier, len(numbers), inputs[held_out], of_depths[held_out], best[held_out])


def _spaced(numbers: list[int], count: int | None) -> list[int]:
    """Return all numbers, or some that are evenly spaced."""
    if count is None or count >= len(numbers):
        return numbers
    return [numbers[i * len(numbers) // count] for i in range(count)]


def _outcome(
    file: Path, classifier: DepthClassifier, sentences: int, inputs: Tensor, scores: Tensor, best: Tensor
) -> Outcome:
    chosen = torch.tensor(classifier.choose(inputs))
    layers = torch.tensor([layers_of(setting) for setting in classifier.settings], dtype=torch.float64)
    count = len(classifier.settings)
    return Outcome(
        file,
        classifier.settings,
        sentences,
        len(best),
        tuple(scores.mean(0).tolist()),
        tuple(torch.bincount(best, minlength=count).tolist()),
        tuple(torch.bincount(chosen, minlength=count).tolist()),
        float(scores.gather(1, chosen.unsqueeze(1)).mean()),
        float(layers[chosen].mean()),
        float((chosen == best).double().mean()),
    )
