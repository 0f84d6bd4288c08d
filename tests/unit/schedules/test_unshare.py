"""Share, then unshare: units, rules, and the gradients that they use."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scheduled_training import changes, make_trainer, sample, train
from tiny_models import batch, build_case, loss, vanilla_copy

from fairseq_sharing.layer_map import make_layer_map
from fairseq_sharing.schedules.schedule import Observation
from fairseq_sharing.schedules.unit_gradients import UnitGradients
from fairseq_sharing.schedules.unshare import Unshare, UnshareRule, find_chains, split_between, tied_pairs


@pytest.mark.parametrize(
    ("labels", "chains"),
    [
        ("0,0,0,0", [[(0,), (1,), (2,), (3,)]]),
        ("0,1,0,1,0,1", [[(0, 1), (2, 3), (4, 5)]]),
        ("0,0,1,1", [[(0,), (1,)], [(2,), (3,)]]),
        ("0,1,2,2,1,0", [[(0,), (5,)], [(1,), (4,)], [(2,), (3,)]]),
        ("0,1,0,1,0", [[(0,), (2,), (4,)], [(1,), (3,)]]),
        ("0,1,1,1,2", [[(1,), (2,), (3,)]]),
        ("0,1,2", []),
    ],
)
def test_units_are_consecutive_uses_of_the_same_parameters(labels, chains):
    layer_map = make_layer_map("custom", labels.count(",") + 1, custom=labels)
    assert find_chains(layer_map) == chains
    assert len(tied_pairs(chains, layer_map)) == sum(len(units) - 1 for units in chains)


def test_splitting_parts_the_units_before_from_those_after():
    chains = [[(0, 1), (2, 3), (4, 5), (6, 7)]]
    once = split_between((0, 1) * 4, chains, [((2, 3), (4, 5))])
    assert once == (0, 1, 0, 1, 2, 3, 2, 3)
    assert tied_pairs(chains, once) == [((0, 1), (2, 3)), ((4, 5), (6, 7))]
    assert split_between(once, chains, [((0, 1), (2, 3)), ((4, 5), (6, 7))]) == tuple(range(8))


class Cosines:
    """Gradients with given cosines."""

    def __init__(self, values):
        self._values = values

    def cosines(self, pairs):
        assert len(pairs) == len(self._values)
        return self._values


def decide(schedule: Unshare, update: int, **cosines):
    assert schedule.due(update)
    assert set(schedule.watched(update)) == set(cosines)
    return schedule.decide(Observation(update, {}, {k: Cosines(v) for k, v in cosines.items()}, None))


def test_a_stack_is_untied_when_most_pairs_disagree_often_enough_in_a_row():
    schedule = Unshare(UnshareRule(when="correlation", interval=10, patience=3), {"e": (0,) * 4, "d": (0,) * 3})
    assert not schedule.due(9)
    high, low = [0.5, 0.9, 0.2], [0.49, 0.9, 0.2]  # one, two of three below 0.5
    assert decide(schedule, 10, e=low, d=[0.9, 0.1]) is None
    assert decide(schedule, 20, e=low, d=[0.9, 0.1]) is None
    assert decide(schedule, 30, e=high, d=[0.9, 0.1]) is None, "half is not more than half"
    assert decide(schedule, 40, e=low, d=[0.9, 0.1]) is None, "the count restarts"
    assert decide(schedule, 50, e=low, d=[0.1, 0.1]) is None
    decision = decide(schedule, 60, e=low, d=[0.1, 0.1])
    assert decision.maps == {"e": (0, 1, 2, 3)}, "each stack decides independently"
    assert schedule.phase == "split"
    decision = decide(schedule, 70, d=[0.1, 0.1])
    assert decision.maps == {"d": (0, 1, 2)}
    assert schedule.phase == "unshared"
    assert not schedule.due(80)


def test_a_group_is_split_where_two_units_disagree_and_its_parts_continue():
    schedule = Unshare(UnshareRule(when="correlation-split", interval=10, patience=2), {"e": (0,) * 4})
    assert decide(schedule, 10, e=[0.9, 0.4, 0.9]) is None
    assert decide(schedule, 20, e=[0.4, 0.4, 0.9]).maps == {"e": (0, 0, 1, 1)}
    assert decide(schedule, 30, e=[0.4, 0.9]).maps == {"e": (0, 1, 2, 2)}, "a pair keeps its count"
    assert decide(schedule, 40, e=[0.4]) is None
    state = schedule.state_dict()
    again = Unshare(UnshareRule(when="correlation-split", interval=10, patience=2), {"e": (0,) * 4})
    again.load_state_dict(state)
    assert decide(again, 50, e=[0.4]).maps == {"e": (0, 1, 2, 3)}
    assert not again.due(60)


@pytest.mark.parametrize("mean", [True, False])
def test_gradients_layer_by_layer_are_those_of_separate_copies(case, mean):
    """The shared parameter gets their mean or sum."""
    model = build_case(case, "pre").eval()
    stock = vanilla_copy(case, model, "pre").eval()
    model.encoder.average_gradients(mean)
    loss(stock, batch(3)).backward()
    loss(stock, batch(4)).backward()
    copies = {name: parameter.grad for name, parameter in stock.named_parameters()}
    gradients = UnitGradients(model.encoder)
    for seed in (3, 4):
        with gradients.collect():
            loss(model, batch(seed)).backward()
    for chains in find_chains(model.encoder.sharing.layer_map):
        for one, other in pairwise(chains):
            parts = [
                torch.cat([copies[f"encoder.layers.{i}.{n}"].flatten() for i in unit for n in shared(case, model)])
                for unit in (one, other)
            ]
            expected = torch.nn.functional.cosine_similarity(*parts, dim=0)
            assert gradients.cosines([(one, other)])[0] == pytest.approx(float(expected), abs=1e-5)
    uses: dict[str, list[torch.Tensor]] = {}
    for name, gradient in copies.items():
        uses.setdefault(case.source(name), []).append(gradient)
    for name, parameter in model.named_parameters():
        expected = sum(uses[name])
        if mean and name.startswith("encoder.layers"):
            expected = expected / len(uses[name])
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(parameter.grad / scale, expected / scale, rtol=0, atol=5e-6, msg=name)


def shared(case, model) -> list[str]:
    return [name for name, _ in model.encoder.layers[0].named_parameters() if case.ties(name)]


def test_a_tied_unit_has_the_mean_of_the_gradients_of_its_copies(case):
    """Without a schedule's statistics, autograd sums over the uses, and the sum is divided."""
    model = build_case(case, "pre").eval()
    stock = vanilla_copy(case, model, "pre").eval()
    for stack in model.stacks.values():
        stack.average_gradients(True)
    loss(model, batch()).backward()
    loss(stock, batch()).backward()
    copies: dict[str, list[torch.Tensor]] = {}
    for name, parameter in stock.named_parameters():
        copies.setdefault(case.source(name), []).append(parameter.grad)
    for name, parameter in model.named_parameters():
        mean = sum(copies[name]) / len(copies[name])
        scale = mean.abs().max().clamp(min=1)
        torch.testing.assert_close(parameter.grad / scale, mean / scale, rtol=0, atol=5e-6, msg=name)


def test_clipping_sees_the_mean(data_dir):
    """Clipping uses the norm of the mean gradients, regardless of how many layers share them."""
    norms = []
    for gradients in ("mean", "sum"):
        trainer = make_trainer(
            data_dir,
            "--sharing-schedule=unshare",
            "--unshare-at=1",
            f"--tied-gradients={gradients}",
            sharing="universal",
        )
        model = trainer.get_model().train()
        trainer.zero_grad()
        trainer.task.train_step(sample(0), model, trainer.criterion, trainer.optimizer, 0)
        scale = 1 / sample(0)["ntokens"]
        norms.append(scale * torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        train(trainer, 2)
        assert changes(trainer)[0]["gradient_norm"]["before"] == pytest.approx(norms[-1], rel=1e-4)
    assert norms[0] < norms[1]


def test_untying_changes_neither_outputs_nor_the_learning_rate(data_dir):
    inputs = batch()
    words = ("--sharing-schedule=unshare", "--lr-scheduler=inverse_sqrt", "--warmup-updates=2")
    outputs, rates = [], []
    for at in (3, 99):
        trainer = make_trainer(data_dir, *words, f"--unshare-at={at}", sharing="universal")
        train(trainer, 3)
        with torch.no_grad():
            outputs.append(trainer.get_model().eval()(**inputs)[0])
        train(trainer, 2)
        rates.append(trainer.get_lr())
        assert bool(changes(trainer)) == (at == 3)
    assert torch.equal(*outputs)
    assert rates[0] == rates[1]


def test_with_equal_gradients_untied_units_stay_alike(data_dir):
    """Moments and step are copied: the first untied steps equal those of the tied model."""
    trainers = [
        make_trainer(data_dir, "--sharing-schedule=unshare", f"--unshare-at={at}", "--clip-norm=0", sharing="universal")
        for at in (99, 2)
    ]
    tied, untied = (trainer.get_model() for trainer in trainers)

    def step_like_tied(optimizer, model, update_num):
        names = dict(tied.named_parameters(remove_duplicate=False))
        for name, parameter in untied.named_parameters():
            parameter.grad = names[name].grad.clone()
        optimizer.step()

    trainers[1].task.optimizer_step = step_like_tied
    for _ in range(5):
        for trainer in trainers:
            train(trainer, 1)
    assert untied.encoder.layers[3].fc1.weight is not untied.encoder.layers[0].fc1.weight
    ours = dict(untied.named_parameters())
    for name, parameter in tied.named_parameters(remove_duplicate=False):
        if name in ours:
            assert torch.equal(ours[name], parameter), name
