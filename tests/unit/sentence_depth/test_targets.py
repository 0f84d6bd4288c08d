"""The targets of the classifier against loops over scalars."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import PAD, batch, build, perturb

from fairseq_sharing.sentence_depth.targets import best_depths, sentence_scores

SETTINGS = [{"encoder": n, "decoder": n} for n in (2, 3, 4)]


@pytest.fixture(scope="module")
def model():
    options = {"sharing": "cycle", "unique_layers": 2, "encoder_layers": 4, "decoder_layers": 4, "depths": "2,3,4"}
    return perturb(build("pre", **options)).eval()


def sample(model) -> dict:
    """Make a batch whose targets are, at the even positions, what the model of depth 3 predicts."""
    inputs = batch()
    target = inputs["prev_output_tokens"].roll(-1, 1)
    model.use_depth(SETTINGS[1])
    with torch.no_grad():
        predicted = model(**inputs)[0].argmax(2)
    model.use_depth(None)
    even = (torch.arange(target.shape[1]) % 2 == 0) & (target != PAD)
    return {"net_input": inputs, "target": torch.where(even, predicted, target)}


@pytest.mark.parametrize("target", ["likelihood", "correctness"])
def test_scores_equal_a_loop_over_tokens(model, target):
    pairs = sample(model)
    found = sentence_scores(model, SETTINGS, pairs, target)
    for column, setting in enumerate(SETTINGS):
        model.use_depth(setting)
        with torch.no_grad():
            logits = model(**pairs["net_input"])[0].tolist()
        for row, words in enumerate(pairs["target"].tolist()):
            total = 0.0
            for position, word in enumerate(words):
                if word == PAD:
                    continue
                values = logits[row][position]
                if target == "likelihood":
                    total += values[word] - math.log(sum(math.exp(value) for value in values))
                else:
                    total += max(range(len(values)), key=values.__getitem__) == word
            assert float(found[row, column]) == pytest.approx(total, abs=1e-4)
    model.use_depth(None)
    assert len({tuple(row) for row in found.T.tolist()}) == 3, "every depth has scores of its own"


def test_a_pass_leaves_all_layers_running(model):
    with torch.no_grad():
        before = model(**batch())[0]
        sentence_scores(model, SETTINGS, sample(model), "likelihood")
        assert torch.equal(model(**batch())[0], before)


@pytest.mark.parametrize("penalty", [0.0, 0.2, 0.5, 20.0])
def test_best_depths_equal_a_scalar_loop(penalty):
    settings = [{"encoder": 4, "decoder": 2}, {"encoder": 4, "decoder": 3}, {"encoder": 6, "decoder": 6}]
    scores = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    expected = []
    for row in scores.tolist():
        values = [
            score - penalty * (setting["encoder"] + setting["decoder"])
            for score, setting in zip(row, settings, strict=True)
        ]
        expected.append(values.index(max(values)))
    assert best_depths(scores, settings, penalty) == expected
    assert len(set(expected)) == (1 if penalty == 20.0 else 3)


def test_equally_good_depths_give_the_one_with_the_fewest_layers():
    scores = torch.tensor([[5.0, 5.0, 5.0], [4.0, 5.0, 5.0], [3.0, 4.0, 6.0]], dtype=torch.float64)
    assert best_depths(scores, SETTINGS, 0.0) == [0, 1, 2]
    assert best_depths(scores, SETTINGS, 0.5) == [0, 0, 2], "one more layer in each stack costs 1"
