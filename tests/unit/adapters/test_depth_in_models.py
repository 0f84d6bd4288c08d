"""Depth parameters in every model and with every other technique."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from depth_models import ALL, CYCLE, adapted
from fairseq import models
from moeut_models import BANKS
from scheduled_training import TrainingBatches, changes, train
from scheduled_training import make_trainer as make_scheduled
from sharing_cases import LAYERS
from step_by_step import check_step_by_step
from tiny_models import EMBED, FFN, arguments, batch, build, dictionary, loss, perturb

from fairseq_sharing.adapters.effective import merge_state
from fairseq_sharing.commands import main
from fairseq_sharing.description.counts import compare, measure
from fairseq_sharing.errors import SharingError
from fairseq_sharing.tying import depth_names

LANGUAGE_MODEL = {
    "decoder_input_dim": EMBED,
    "decoder_output_dim": EMBED,
    "tokens_per_sample": 32,
    "share_decoder_input_output_embed": True,
}


def merged(model) -> dict:
    """The state dict of a vanilla model with the weights that the depths use."""
    return merge_state(dict(model.named_parameters(remove_duplicate=False)))


def test_language_model(norm):
    model = perturb(build(norm, arch="transformer_lm_sharing", **LANGUAGE_MODEL, **CYCLE, **ALL)).eval()
    assert {name.split(".")[0] for name in depth_names(model.decoder.layers[0])} >= {"depth", "fc1"}
    assert not hasattr(model.decoder.layers[0].depth.lora, "encoder_attn")
    vanilla = build(norm, arch="transformer_lm", seed=3, **LANGUAGE_MODEL).eval()
    vanilla.load_state_dict({**vanilla.state_dict(), **{n: p.detach() for n, p in merged(model).items()}})
    words = batch()["prev_output_tokens"]
    with torch.no_grad():
        torch.testing.assert_close(model(words)[0], vanilla(words)[0], rtol=0, atol=1e-5)
    again = build(norm, arch="transformer_lm_sharing", seed=4, **LANGUAGE_MODEL, **CYCLE, **ALL).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(words)[0], model(words)[0])


def test_roberta():
    sizes = {"encoder_layers": 4, "encoder_embed_dim": EMBED, "encoder_ffn_embed_dim": FFN}
    args = {**sizes, "encoder_attention_heads": 2, "max_positions": 64, "arch": "roberta_sharing"}
    task = SimpleNamespace(source_dictionary=dictionary(), max_positions=lambda: 64)
    own = {"sharing": "cycle", "unique_layers": 2, **ALL}
    torch.manual_seed(1)
    model = perturb(models.build_model(SimpleNamespace(**args, **own), task)).eval()
    vanilla = models.build_model(SimpleNamespace(**{**args, "arch": "roberta"}), task).eval()
    vanilla.load_state_dict({**vanilla.state_dict(), **{n: p.detach() for n, p in merged(model).items()}})
    words = batch()["src_tokens"]
    with torch.no_grad():
        torch.testing.assert_close(model(words)[0], vanilla(words)[0], rtol=0, atol=1e-5)
    assert model.state_dict()["_extra_state"]["depth"]["lora"]["rank"] == 4


@pytest.mark.parametrize("fast", [False, True])
def test_universal_transformer_with_act_decodes_as_it_trains(fast, norm):
    options = {"sharing": "universal", "unique_layers": None, "depth_signal": "learned", "position_per_depth": True}
    model = adapted(norm, **options, act="both", fast=fast)
    check_step_by_step(model)
    with torch.no_grad():
        evaluated = model(**batch())[0]
        torch.testing.assert_close(model.train()(**batch())[0], evaluated, rtol=0, atol=1e-5)
    loss(model, batch()).backward()
    assert model.encoder.layers[0].depth.lora.fc1.a.grad.abs().sum() > 0


@pytest.mark.parametrize("admin", ["profile", "closed_form"])
def test_admin_keeps_its_own_depth_parameters(admin):
    model = adapted(admin=admin).train()
    assert {"residual_weight", "depth.lora.fc1.a"} <= set(depth_names(model.encoder.layers[4]))
    before = model.encoder.layers[4].residual_weight.clone()
    model(**batch())
    assert torch.equal(model.encoder.layers[4].residual_weight, before) == (admin == "closed_form")
    check_step_by_step(model.eval())
    again = adapted(admin=admin, seed=6)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(**batch())[0], model(**batch())[0])


@pytest.mark.parametrize("option", ALL)
def test_moeut_refuses_them_by_name(option):
    with pytest.raises(SharingError, match=f"^--{option.replace('_', '-')} "):
        build("pre", arch="transformer_moeut", sharing="cycle", unique_layers=2, **BANKS, **{option: ALL[option]})


# Schedules.


def test_unsharing_keeps_the_depth_parameters_and_their_moments(data_dir):
    words = ("--sharing-schedule=unshare", "--unshare-at=2", "--clip-norm=0")
    trainer = make_scheduled(data_dir, *words, sharing="universal", depth_lora=2, depth_scale=True, depth_bias=True)
    model, state = trainer.get_model(), trainer.optimizer.optimizer.state
    train(trainer, 2)
    kept = {name: p for name, p in model.named_parameters() if ".depth." in name}
    steps = {name: state[p]["step"] for name, p in kept.items()}
    layers = model.encoder.layers
    assert len(changes(trainer)) == 1
    assert layers[1].fc1.weight is not layers[0].fc1.weight
    train(trainer, 1)
    now = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in kept.items())
    assert all(state[p]["step"] == steps[name] + 1 for name, p in kept.items())
    listed = trainer.optimizer.optimizer.param_groups[0]["params"]
    assert [id(p) for p in listed] == [id(p) for p in model.parameters()]


def test_a_frozen_depth_freezes_what_belongs_to_it():
    model = adapted(sharing="none", unique_layers=None, admin="closed_form")
    model.encoder.freeze((2, 3))
    for depth, layer in enumerate(model.encoder.layers):
        trains = {name: parameter.requires_grad for name, parameter in layer.named_parameters()}
        assert set(trains.values()) == {depth not in (2, 3)}, trains
    assert len(trains) == 1 + 16 + 12 + 3  # Admin, the layer, adapters and factors
    model.encoder.freeze((3,))
    assert all(parameter.requires_grad for parameter in model.encoder.layers[2].parameters())


def test_a_dynamic_schedule_freezes_and_ties_layers_with_adapters(data_dir):
    words = ("--sharing-schedule=dynamic", "--dynamic-interval=2", "--dynamic-policy=random")
    trainer = make_scheduled(data_dir, *words, sharing="none", depth_lora=2, depth_bias=True)
    trainer.task._loss.batches = TrainingBatches()
    frozen = trainer.get_model().encoder.layers[3]
    assert not frozen.depth.lora.fc1.a.requires_grad
    assert not frozen.fc1.bias.requires_grad
    train(trainer, 8)
    assert changes(trainer)
    names = dict(trainer.get_model().named_parameters(remove_duplicate=False))
    own = [p for name, p in names.items() if ".depth." in name or (".layers." in name and name.endswith(".bias"))]
    assert len({id(p) for p in own}) == len(own)


def test_mean_gradients_apply_to_shared_parameters_only():
    options = {"sharing": "universal", "unique_layers": None}
    summed, mean = (adapted(**options).train() for _ in range(2))
    mean.encoder.average_gradients(True)
    for model in (summed, mean):
        loss(model, batch()).backward()
    one, other = summed.encoder.layers[0], mean.encoder.layers[0]
    torch.testing.assert_close(other.fc1.weight.grad * LAYERS, one.fc1.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.depth.lora.fc1.b.grad, one.depth.lora.fc1.b.grad, rtol=0, atol=0)


# Descriptions.


def test_description_counts_depth_parameters_once_per_depth():
    args = arguments(**CYCLE, **ALL)
    described = measure("adapted", args, 50, 10)
    plain = measure("plain", arguments(**CYCLE), 50, 10)
    widths = {"encoder": 4, "decoder": 8}
    lora = {s: 4 * (n * 2 * EMBED + 2 * (EMBED + FFN)) for s, n in widths.items()}
    scale = {"encoder": 2 * EMBED + FFN, "decoder": 4 * EMBED + FFN}
    norms = {"encoder": 2 * 2 * EMBED, "decoder": 3 * 2 * EMBED}
    biases = {s: n * EMBED + FFN + EMBED for s, n in widths.items()}
    expected = LAYERS * sum(part[stack] for part in (lora, scale, norms, biases) for stack in widths)
    assert described.unique["depth"] == expected
    moved = 3 * sum(part[stack] for part in (norms, biases) for stack in widths)
    assert sum(described.unique.values()) == sum(plain.unique.values()) - moved + expected
    assert sum(described.effective.values()) == sum(plain.effective.values())
    assert plain.unique["depth"] == 0
    assert plain.depth_kinds == []
    assert described.depth_kinds[4:] == [
        f"decoder  lora: rank 4, 10 matrices, {lora['decoder']:,} values per depth",
        f"decoder  scale: 5 vectors, {scale['decoder']} values per depth",
        f"decoder  norm: 6 vectors, {norms['decoder']} values per depth",
        f"decoder  bias: 10 vectors, {biases['decoder']} values per depth",
    ]


def test_compared_vanilla_models_have_no_depth_parameters():
    described = compare("adapted", arguments(**CYCLE, **ALL), 50, 10)
    assert [sum(model.unique.values()) for model in described[1:]] == [
        sum(model.unique.values()) for model in compare("plain", arguments(**CYCLE), 50, 10)[1:]
    ]


def test_the_command_describes_each_kind_in_one_line(capsys):
    words = ["describe", "toy", "row=cycle_rev", "train.depth_lora=2", "train.depth_norm=true", "--vocabulary", "100"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "\ndecoder  lora: rank 2, 10 matrices, " in printed
    assert "\nencoder  norm: 4 vectors, " in printed
