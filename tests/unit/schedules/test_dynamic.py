"""Dynamic layer tying: state and learning of the agent, and its decisions in a run."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from scheduled_training import TrainingBatches, changes, make_trainer, sample, train
from tiny_models import PAD

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.schedules.agent import Agent, head_offset, head_size, resolve
from fairseq_sharing.schedules.build import build_schedule
from fairseq_sharing.schedules.options import ScheduleOptions, read_options
from fairseq_sharing.schedules.schedule import Observation

DYNAMIC = ("--sharing-schedule=dynamic", "--dynamic-interval=2")


def make_agent(*depths: int, **changed) -> Agent:
    return Agent(depths, **{"hidden": 16, "lr": 0.01, "discount": 0.99, "scaled": True, "seed": 1, **changed})


def make_dynamic(layers: int = 4, stacks=("encoder", "decoder"), **changed):
    options = ScheduleOptions(sharing_schedule="dynamic", **changed)
    return build_schedule(read_options(options), {stack: StackSharing(tuple(range(layers))) for stack in stacks})


class Losses:
    """A run with a given loss that counts how often it is measured."""

    def __init__(self, nll: float = 2.0):
        self.nll, self.drawn = nll, []

    def at(self, update: int) -> Observation:
        return Observation(update, {}, {}, self._measure)

    def _measure(self, draw) -> float:
        self.drawn.append(draw(100, 3))
        return self.nll


def walk(actions: list[int], layer: int) -> int:
    while actions[layer] != layer:
        layer = actions[layer]
    return layer


def test_root_is_the_end_of_a_chain_of_actions():
    for actions in itertools.product(*(range(i + 1) for i in range(5))):
        roots = resolve(actions)
        assert roots == [walk(list(actions), layer) for layer in range(5)]
        assert roots[0] == 0
        for layer, root in enumerate(roots):
            assert 0 <= root <= layer
            assert roots[root] == root


def test_positions_of_a_layer_s_values_follow_the_paper_s_sizes():
    assert [head_offset(layer) for layer in (1, 2, 3)] == [0, 2, 5]
    assert [head_size(layers) for layers in (6, 12, 48)] == [20, 77, 1175]
    agent = make_agent(6, 6)
    assert len(agent.places) == 10
    values = agent.values([[0] * 6, [0] * 6])
    assert [len(values[place]) for place in agent.places] == [2, 3, 4, 5, 6] * 2
    flat = torch.cat([values[place] for place in agent.places])
    assert len(flat) == 40
    assert len(set(flat.tolist())) == 40, "two layers share a value"
    assert len(make_agent(12, 12).places) == 22


def test_best_actions_layer_by_layer_are_the_best_vector():
    agent = make_agent(4, 3)
    state = [[0, 0, 1, 0], [0, 1, 0]]
    values = agent.values(state)
    vectors = itertools.product(*(range(layer + 1) for _, layer in agent.places))
    best = max(vectors, key=lambda v: sum(values[p][a].item() for p, a in zip(agent.places, v, strict=True)))
    assert agent.act(state, agent.places, epsilon=0) == (list(best), False)


@pytest.mark.parametrize("scaled", [True, False])
def test_one_step_of_q_learning_is_that_of_plain_arithmetic(scaled):
    agent = make_agent(3, scaled=scaled)
    state, after = [[0, 0, 2]], [[0, 1, 1]]
    weights = {name: value.clone().double() for name, value in agent.state_dict()["network"].items()}

    def q(roots, weights):
        inputs = torch.tensor([roots[0][1], roots[0][2]], dtype=torch.float64) / (2 if scaled else 1)
        hidden = (weights["0.weight"] @ inputs + weights["0.bias"]).clamp(min=0)
        return weights["2.weight"] @ hidden + weights["2.bias"]

    # Layer 1 has values 0 and 1, layer 2 has 2, 3 and 4; the actions taken are 1 and 0.
    target = -1.5 + 0.99 * (q(after, weights)[:2].max() + q(after, weights)[2:].max())
    leaves = {name: value.requires_grad_() for name, value in weights.items()}
    loss = (q(state, leaves)[1] + q(state, leaves)[2] - target.detach()) ** 2
    loss.backward()
    reference = torch.optim.AdamW(list(leaves.values()), lr=0.01, weight_decay=0.01)
    reference.step()
    agent.learn(state, {(0, 1): 1, (0, 2): 0}, -1.5, after, agent.places)
    for name, value in agent.state_dict()["network"].items():
        torch.testing.assert_close(value.double(), leaves[name].detach(), rtol=1e-5, atol=1e-6)


def test_agent_learns_which_action_pays():
    agent = make_agent(2, discount=0.0)
    for turn in range(300):
        action = turn % 2
        agent.learn([[0, 0]], {(0, 1): action}, [-3.0, -1.0][action], [[0, action]], agent.places)
    values = agent.values([[0, 0]])[0, 1].tolist()
    assert values == pytest.approx([-3.0, -1.0], abs=0.3)
    assert agent.act([[0, 0]], agent.places, epsilon=0)[0] == [1]


def test_random_policy_is_uniform_and_leaves_a_harmonic_number_of_own_layers():
    schedule = make_dynamic(12, ("decoder",), dynamic_policy="random", dynamic_interval=1)
    own, chosen = [], {layer: Counter() for layer in range(1, 12)}
    for update in range(1, 1001):
        decision = schedule.decide(Losses().at(update))
        own.append(len(set(decision.maps["decoder"])))
        for layer, counter in chosen.items():
            counter[schedule.state_dict()["actions"]["decoder"][layer]] += 1
    harmonic = sum(1 / i for i in range(1, 13))
    deviation = math.sqrt(sum(1 / i - 1 / i**2 for i in range(1, 13)) / len(own))
    assert abs(sum(own) / len(own) - harmonic) < 4 * deviation
    for layer, counter in chosen.items():
        expected = len(own) / (layer + 1)
        chi_square = sum((counter[action] - expected) ** 2 / expected for action in range(layer + 1))
        assert chi_square < layer + 5 * math.sqrt(2 * layer) + 5, f"layer {layer} is not uniform: {counter}"


def test_epsilon_decays_with_every_learned_decision_to_its_floor():
    schedule, losses = make_dynamic(), Losses()
    seen = []
    for update in range(15, 15 * 60, 15):
        assert schedule.due(update)
        assert not schedule.due(update + 1)
        schedule.decide(losses.at(update))
        seen.append(schedule.log_values()["epsilon"])
    assert seen[:3] == pytest.approx([1, 0.95, 0.95**2])
    assert seen[45] == pytest.approx(0.1)
    assert seen[44] > 0.1
    assert min(seen) == 0.1


def test_epsilon_can_decay_with_sweeps():
    schedule = make_dynamic(dynamic_decide="layer", dynamic_epsilon_per="sweep", dynamic_epsilon_min=0.01)
    seen = []
    for update in range(15, 15 * 15, 15):
        schedule.decide(Losses().at(update))
        seen.append(schedule.log_values()["epsilon"])
    assert seen == pytest.approx([1.0] * 6 + [0.95] * 6 + [0.95**2] * 2)


@pytest.mark.parametrize(
    ("kind", "rewards"),
    [
        ("nll", [-1.0, -2.0, -3.0]),
        ("ppl", [-math.e, -(math.e**2), -(math.e**3)]),
        ("ppl-clip10", [-math.e, -(math.e**2), -10]),
    ],
)
def test_reward_falls_with_the_perplexity(kind, rewards):
    for nll, reward in zip((1.0, 2.0, 3.0), rewards, strict=True):
        schedule = make_dynamic(dynamic_reward=kind)
        schedule.decide(Losses(nll).at(15))
        assert "reward" not in schedule.log_values(), "the first decision has no reward yet"
        schedule.decide(Losses(nll).at(30))
        assert schedule.log_values()["reward"] == pytest.approx(reward)


def test_immediate_reward_needs_no_further_updates():
    schedule, losses = make_dynamic(dynamic_reward_when="immediate"), Losses()
    schedule.decide(losses.at(15))
    assert schedule.state_dict()["open"] is not None
    schedule.decided(losses.at(15))
    assert schedule.state_dict()["open"] is None
    assert schedule.log_values()["reward"] == -2
    assert len(losses.drawn) == 1


def test_a_layer_at_a_time_leaves_the_others_alone():
    schedule = make_dynamic(3, dynamic_decide="layer")
    decided = {"encoder": {1, 2}, "decoder": {1, 2}}
    for stack, layer in (("encoder", 1), ("encoder", 2), ("decoder", 1), ("decoder", 2)):
        decision = schedule.decide(Losses().at(15))
        decided[stack].remove(layer)
        assert decision.frozen == {name: tuple(sorted(left)) for name, left in decided.items()}
        for name, left in decided.items():
            assert all(decision.maps[name].count(decision.maps[name][layer]) == 1 for layer in left)


@pytest.mark.parametrize(
    ("choice", "teams"),
    [("joint", [["encoder", "decoder"]]), ("separate", [["encoder"], ["decoder"]]), ("decoder", [["decoder"]])],
)
def test_agents_have_the_stacks_that_they_are_given(choice, teams):
    schedule = make_dynamic(6, dynamic_agent=choice)
    decision = schedule.decide(Losses().at(15))
    assert list(decision.maps) == [stack for team in teams for stack in team]
    agents = schedule.state_dict()["agents"]
    assert [len(agent["network"]["2.bias"]) for agent in agents] == [20 * len(team) for team in teams]


def test_the_agent_has_the_seed_of_the_training_unless_given_its_own():
    assert read_options(ScheduleOptions(sharing_schedule="dynamic"), seed=5).dynamic_seed == 5
    assert read_options(ScheduleOptions(sharing_schedule="dynamic", dynamic_seed=2), seed=5).dynamic_seed == 2


def test_state_between_a_decision_and_its_reward_resumes_unchanged():
    one, losses = make_dynamic(), Losses()
    for update in (15, 30, 45):
        one.decide(losses.at(update))
    other = make_dynamic(dynamic_seed=1)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    mine, theirs = Losses(1.5), Losses(1.5)
    for update in (60, 75, 90):
        assert one.decide(mine.at(update)) == other.decide(theirs.at(update))
    assert mine.drawn == theirs.drawn
    for ours, its in zip(one.state_dict()["agents"], other.state_dict()["agents"], strict=True):
        assert all(torch.equal(value, its["network"][name]) for name, value in ours["network"].items())


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"dynamic_agent": "encoder", "stacks": ("decoder",)}, "--dynamic-agent encoder"),
        ({"layers": 1}, "at least 2 layers"),
        ({"freeze_pattern_at": 15}, "--freeze-pattern-at"),
        ({"dynamic_reward": "bleu"}, "--dynamic-reward must be one of nll, ppl"),
        ({"dynamic_interval": 0}, "--dynamic-interval must be at least 1, got 0"),
    ],
)
def test_bad_options_are_reported_in_one_line(changed, word):
    with pytest.raises(SharingError, match=word) as caught:
        make_dynamic(**changed)
    assert "\n" not in str(caught.value)


# In a run.


def make_run(data_dir, *words: str, **options):
    trainer = make_trainer(data_dir, *DYNAMIC, *words, **options)
    trainer.task._loss.batches = TrainingBatches()
    return trainer


def force(trainer, *vectors) -> None:
    """Make the agent choose these actions for layers 1 to 3 of (encoder, decoder), one after the other."""
    _, agent = trainer.task.engine._schedule._agents[0]
    chosen = iter(vectors)
    agent.act = lambda state, places, epsilon: ([*next(chosen)] * 2, False)


def test_frozen_layers_keep_their_initial_values_and_use_no_memory_but_for_them(data_dir):
    trainer = make_run(data_dir)
    model = trainer.get_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(trainer, 1)
    state = trainer.optimizer.optimizer.state
    for name, parameter in model.named_parameters():
        frozen = ".layers." in name and ".layers.0." not in name
        assert torch.equal(parameter, before[name]) == frozen, name
        assert (parameter.grad is None) == frozen, name
        assert (parameter not in state) == frozen, name


def test_first_decision_for_layer_0_copies_it_into_a_frozen_layer(data_dir):
    trainer = make_run(data_dir)
    force(trainer, (0, 1, 3))
    layers = trainer.get_model().encoder.layers
    frozen = layers[3].fc1.weight.detach().clone()
    train(trainer, 2)
    assert layers[1].fc1.weight is layers[0].fc1.weight
    assert layers[2].fc1.weight is layers[0].fc1.weight, "an action on a tied layer resolves to its root"
    assert torch.equal(layers[3].fc1.weight, frozen), "an independent layer starts from its initial values"
    train(trainer, 1)
    assert not torch.equal(layers[3].fc1.weight, frozen)


def test_untying_preserves_the_function_and_then_parts_the_layers(data_dir):
    trainer = make_run(data_dir)
    force(trainer, (0, 0, 0), (0, 2, 3), (0, 2, 3))
    model, inputs = trainer.get_model(), sample(5)["net_input"]
    train(trainer, 3)
    outputs = []

    def look(*_):
        model.eval()
        with torch.no_grad():
            outputs.append(model(**inputs)[0])

    schedule = trainer.task.engine._schedule
    decide, decided = schedule.decide, schedule.decided
    schedule.decide = lambda run: look() or decide(run)
    schedule.decided = lambda run: look() or decided(run)
    train(trainer, 1)
    assert torch.equal(*outputs)
    layers = model.encoder.layers
    own = layers[2].fc1.weight
    assert own.data_ptr() != layers[0].fc1.weight.data_ptr()
    assert torch.equal(own, layers[0].fc1.weight)
    train(trainer, 1)
    assert not torch.equal(own, layers[0].fc1.weight)
    with torch.no_grad():
        kept = own.clone()
        layers[0].fc1.weight.add_(1)
    assert torch.equal(own, kept), "a step of one agent does not change the other"


@pytest.mark.parametrize("moments", ["inherit", "reset"])
def test_moments_of_an_untied_layer(moments, data_dir):
    trainer = make_run(data_dir, f"--untied-moments={moments}")
    force(trainer, (0, 0, 0), (0, 2, 3))
    train(trainer, 4)
    layers, state = trainer.get_model().encoder.layers, trainer.optimizer.optimizer.state
    root, own = state[layers[0].fc1.weight], state.get(layers[2].fc1.weight, {})
    assert layers[1].fc1.weight is layers[0].fc1.weight
    if moments == "reset":
        assert own == {}
        return
    assert own["step"] == root["step"] == 4
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(own[moment], root[moment])
        assert own[moment].data_ptr() != root[moment].data_ptr()


def test_the_pattern_stays_from_the_update_that_is_named(data_dir):
    trainer = make_run(data_dir, "--dynamic-policy=random", "--freeze-pattern-at=6")
    train(trainer, 12)
    assert changes(trainer)[-1]["update"] < 6


def test_reward_is_the_loss_per_target_token_without_dropout(data_dir):
    trainer = make_run(data_dir, "--criterion=label_smoothed_cross_entropy", "--label-smoothing=0.1", dropout=0.3)
    train(trainer, 1)
    got = trainer.task._loss.measure(trainer, lambda batches, count: [3])
    expected = sample(1003)
    with torch.no_grad():
        model = trainer.get_model().eval()
        log_probs = torch.log_softmax(model(**expected["net_input"])[0].double(), -1)
    real = expected["target"] != PAD
    picked = log_probs.gather(-1, expected["target"].unsqueeze(-1)).squeeze(-1)[real]
    assert got == pytest.approx(-picked.mean().item(), rel=1e-5)
