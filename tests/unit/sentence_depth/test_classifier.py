"""The classifier: its input, its training, its choice and its file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tiny_models import PAD, batch, build, perturb

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256
from fairseq_sharing.sentence_depth.classifier import DepthClassifier
from fairseq_sharing.sentence_depth.costs import Costs
from fairseq_sharing.sentence_depth.file import check_fit, read_classifier, write_classifier
from fairseq_sharing.sentence_depth.fit import _fit, fit
from fairseq_sharing.sentence_depth.states import mean_states, refuse_too_long, within_positions

SETTINGS = ({"encoder": 2, "decoder": 2}, {"encoder": 3, "decoder": 3}, {"encoder": 4, "decoder": 4})
COSTS = Costs((1.0, 0.5), ((10.0, 1.0), (20.0, 2.0), (30.0, 3.0)))
CYCLE = {"sharing": "cycle", "unique_layers": 2, "encoder_layers": 4, "decoder_layers": 4, "depths": "2,3,4"}


@pytest.fixture
def classifier():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    training = {"target": "likelihood", "penalty": 0.1, "subset": "valid", "sentences": 100}
    return DepthClassifier(SETTINGS, weight, torch.tensor([0.1, -0.2, 1 / 3], dtype=torch.float64), COSTS, training)


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_input_is_the_mean_over_the_tokens_of_the_encoder_at_its_depth(norm):
    model = perturb(build(norm, **CYCLE)).eval()
    inputs = batch()
    found = mean_states(model, 2, inputs)
    smaller = perturb(build(norm, **{**CYCLE, "depths": None, "encoder_layers": 2})).eval()
    smaller.encoder.load_state_dict(
        {k: v for k, v in model.encoder.state_dict().items() if not k.startswith(("layers.2", "layers.3", "_"))}, False
    )
    for row, (words, length) in enumerate(zip(inputs["src_tokens"], inputs["src_lengths"], strict=True)):
        assert (words == PAD).sum() == len(words) - length
        alone = words[words != PAD].unsqueeze(0)
        with torch.no_grad():
            states = smaller.encoder(alone, length.unsqueeze(0))["encoder_out"][0]
        torch.testing.assert_close(found[row], states[:, 0].mean(0), rtol=0, atol=1e-6)


def test_fit_is_the_optimum_that_scipy_finds():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64) * 3 + 5
    targets = torch.randint(3, (60,), generator=generator)
    weight, bias = _fit(inputs, targets, 3, 0.01)
    standard = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)

    def loss(values) -> float:
        parameters = torch.from_numpy(values)
        w, b = parameters[:12].view(3, 4), parameters[12:]
        value = torch.nn.functional.cross_entropy(standard @ w.T + b, targets)
        return float(value + 0.005 * w.square().sum() + 5e-7 * b.square().sum())

    best = minimize(loss, torch.zeros(15, dtype=torch.float64).numpy(), method="BFGS", options={"gtol": 1e-9})
    w, b = torch.from_numpy(best.x[:12]).view(3, 4), torch.from_numpy(best.x[12:])
    ours = torch.softmax(inputs @ weight.T + bias, 1)
    torch.testing.assert_close(ours, torch.softmax(standard @ w.T + b, 1), rtol=0, atol=1e-4)


def test_fit_learns_separable_classes_and_not_noise():
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(3, (200,), generator=generator)
    inputs = torch.randn(200, 8, generator=generator)
    inputs[torch.arange(200), targets] += 6
    held_out = torch.arange(200) % 10 == 9
    weight, bias = fit(inputs, targets, 3, held_out)
    assert ((inputs.double() @ weight.T + bias).argmax(1) == targets)[held_out].double().mean() == 1
    noise = torch.randn(200, 150, generator=generator)
    weight, _ = fit(noise, (torch.rand(200, generator=generator) < 0.3).long(), 2, held_out)
    assert weight.abs().max() < 0.2, "a strong penalty is chosen if the input says nothing"


def test_one_depth_that_is_always_the_best_is_always_chosen():
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(4))
    weight, bias = fit(inputs, torch.ones(40, dtype=torch.long), 3, torch.arange(40) % 10 == 9)
    assert DepthClassifier(SETTINGS, weight, bias, COSTS).choose(inputs) == [1] * 40


def test_choice_of_equally_probable_depths_has_the_fewest_layers(classifier):
    equal = DepthClassifier(SETTINGS, torch.zeros(3, 16).double(), torch.zeros(3).double(), COSTS)
    assert equal.choose(torch.randn(4, 16)) == [0] * 4
    means = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))
    expected = []
    for mean in means.tolist():
        scores = [
            sum(w * m for w, m in zip(row, mean, strict=True)) + b
            for row, b in zip(classifier.weight.tolist(), classifier.bias.tolist(), strict=True)
        ]
        expected.append(scores.index(max(scores)))
    assert classifier.choose(means) == expected
    assert len(set(expected)) == 3


def test_costs_are_sums_over_sentences(classifier):
    chosen, lengths = [0, 2, 1], [3, 5, 4]
    encoder = sum(n + 0.5 * n * n for n in lengths)
    translation = (30 + 9) + (150 + 75) + (80 + 32)
    assert classifier.per_sentence(chosen, lengths) == pytest.approx(48 + (encoder + translation) / 3)
    assert classifier.costs.at_one_depth(2, lengths) == pytest.approx((117 + 225 + 168) / 3)


def test_file_holds_the_classifier_bit_by_bit(classifier, checkpoint):
    before = sha256(checkpoint)
    file = write_classifier(classifier, checkpoint)
    assert file == checkpoint.with_name("model.depth-classifier.json")
    assert sha256(checkpoint) == before
    found = read_classifier(checkpoint)
    assert torch.equal(found.weight, classifier.weight)
    assert torch.equal(found.bias, classifier.bias)
    assert (found.settings, found.costs, found.training) == (SETTINGS, COSTS, classifier.training)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("bias"), "not a depth classifier; missing: bias"),
        (lambda c: c["bias"].pop(), "not a depth classifier: bias has 2 rows for 3 depths"),
        (lambda c: c["weight"].pop(), "not a depth classifier: weight has 2 rows for 3 depths"),
        (lambda c: c["weight"][1].pop(), "not a depth classifier: the rows of weight differ in length"),
        (lambda c: c["macs"]["settings"].pop(), "not a depth classifier: macs has 2 rows for 3 depths"),
        (lambda c: c["macs"].pop("encoder"), "allowed: two numbers for the encoder and for each depth"),
        (lambda c: c["weight"][0].__setitem__(0, "x"), "allowed: a list of numbers per depth"),
        (lambda c: c["weight"][0].__setitem__(0, float("nan")), "weight.0.0: nan; allowed: finite numbers"),
        (lambda c: c.update(settings=[{"encoder": -1}] * 3), "allowed: two or more depths"),
        (lambda c: c.update(settings=c["settings"][:1]), "allowed: two or more depths"),
        (lambda c: c.update(training={"a": ["b"]}), "allowed: names and numbers"),
    ],
)
def test_damaged_files_are_refused(change, message, classifier, checkpoint):
    file = write_classifier(classifier, checkpoint)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(SharingError) as refused:
        read_classifier(checkpoint)
    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_pickles_are_not_read(checkpoint, classifier):
    file = write_classifier(classifier, checkpoint)
    torch.save({"weight": classifier.weight}, file)
    with pytest.raises(SharingError, match="not JSON: not UTF-8"):
        read_classifier(checkpoint)


def test_changed_checkpoint_and_missing_classifier_are_refused(classifier, checkpoint):
    command = f"fairseq-sharing autodepth {checkpoint} --penalty X"
    with pytest.raises(SharingError) as refused:
        read_classifier(checkpoint)
    assert str(refused.value) == f"--depth auto: {checkpoint} has no depth classifier; train one with: {command}"
    file = write_classifier(classifier, checkpoint)
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(SharingError) as refused:
        read_classifier(checkpoint)
    message = f"{file}: was trained for another version of {checkpoint}; train it again with: {command}"
    assert str(refused.value) == message


def test_classifier_of_another_model_is_refused(classifier, tmp_path):
    check_fit(classifier, build(**CYCLE), tmp_path)
    with pytest.raises(SharingError) as refused:
        check_fit(classifier, build(**{**CYCLE, "depths": "2,4"}), tmp_path)
    assert str(refused.value) == f"{tmp_path}: chooses depth 3, which the model was not trained at; allowed: 2, 4"
    narrow = DepthClassifier(SETTINGS, classifier.weight[:, :8], classifier.bias, COSTS)
    with pytest.raises(SharingError) as refused:
        check_fit(narrow, build(**CYCLE), tmp_path)
    assert str(refused.value) == f"{tmp_path}: has 8 values per depth; allowed: 16, the width of the encoder"


class Pairs(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.sizes)


def test_sentences_that_are_too_long_are_left_out_or_refused():
    model = SimpleNamespace(max_positions=lambda: (8, 6))
    pairs = Pairs(sizes=np.array([[8, 6], [9, 2], [3, 7], [1, 1]]))
    assert within_positions(pairs, model) == [0, 3]
    assert within_positions(Pairs(sizes=np.array([8, 9])), model) == [0]
    with pytest.raises(SharingError) as refused:
        refuse_too_long(pairs, model, "news")
    assert str(refused.value) == (
        "news: line 2 has 9 and 2 source and target subwords with the end of sentence; "
        "allowed: at most 8 and 6, the run's train.max_source_positions and train.max_target_positions"
    )
    refuse_too_long(Pairs(sizes=pairs.sizes[:1]), model, "news")
