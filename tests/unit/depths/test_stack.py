"""A model that runs some of its layers equals a separately built model of that depth."""

from __future__ import annotations

import pytest
import torch
from sharing_cases import CASES, LAYERS
from step_by_step import check_step_by_step
from tied_models import checkpoint_of
from tiny_models import EOS, arguments, assert_same_translations, batch, build, loss, perturb, translate

from fairseq_sharing.depths.active import possible_depths
from fairseq_sharing.depths.checkpoint import take_depth
from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.errors import SharingError

CYCLE = {"sharing": "cycle", "unique_layers": 3}
SEQUENCE = {"sharing": "sequence", "unique_layers": 3}
EXTRAS = [
    {},
    {"admin": "closed_form"},
    {"depth_signal": "sinusoidal", "position_per_depth": True},
    {"depth_signal": "learned"},
    {"fast": True},
    {"layernorm_embedding": True},
]


def forced(depth: int) -> DepthRequest:
    return DepthRequest(depth, force=True)


def built_at(model, depth: int, norm: str, **options):
    """Build the model of a depth and load the weights of a larger one."""
    checkpoint, setting = take_depth(checkpoint_of(model, arguments(norm, **options)), forced(depth))
    assert setting == {"encoder": depth, "decoder": depth}
    made = vars(checkpoint["cfg"]["model"])
    smaller = build(
        norm,
        seed=9,
        **{key: value for key, value in made.items() if key not in vars(arguments())}
        | {f"{stack}_layers": depth for stack in ("encoder", "decoder")},
    )
    smaller.load_state_dict(checkpoint["model"], strict=True)
    assert len(smaller.encoder.layers) == depth
    return smaller


def smaller_depths():
    for case in CASES:
        shared = set(possible_depths(case.encoder)) & set(possible_depths(case.decoder)) - {LAYERS}
        for depth in sorted(shared):
            yield pytest.param(case, depth, id=f"{case.name}-{depth}")


@pytest.mark.parametrize(("case", "depth"), list(smaller_depths()))
def test_depth_equals_a_model_of_that_depth(case, depth, norm):
    model = perturb(build(norm, **case.options)).eval()
    smaller = built_at(model, depth, norm, **case.options).eval()
    model.use_depth({"encoder": depth, "decoder": depth})
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], smaller(**inputs)[0])
        model.use_depth(None)
        assert not torch.allclose(model(**inputs)[0], smaller(**inputs)[0])


@pytest.mark.parametrize("options", EXTRAS, ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_outputs_and_gradients_equal_a_model_of_that_depth(options, training, norm):
    if "admin" in options and norm == "pre":
        pytest.skip("Admin requires post-norm layers")
    options = {**CYCLE, **options}
    model = perturb(build(norm, **options)).train(training)
    smaller = built_at(model, 4, norm, **options).train(training)
    for stack in model.stacks.values():
        stack.limit((0, 1, 2, 3), training)
    losses = [loss(one, batch()) for one in (model, smaller)]
    assert torch.equal(*losses)
    for one in losses:
        one.backward()
    gradients = dict(smaller.named_parameters())
    for name, parameter in model.named_parameters():
        if name.endswith("depth_signal.weight"):
            assert torch.equal(parameter.grad[:4], gradients[name].grad)
            assert not parameter.grad[4:].any()
        elif name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=0, atol=1e-5)
        else:
            assert parameter.grad is None, name


def test_sequence_with_one_layer_per_set_equals_vanilla(norm):
    model = perturb(build(norm, **SEQUENCE)).eval()
    vanilla = build(norm, seed=9, arch="transformer", encoder_layers=3, decoder_layers=3).eval()
    state = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
    for name in list(state):
        head, found, rest = name.partition(".layers.")
        if found:
            layer, _, leaf = rest.partition(".")
            state[f"{head}.layers.{int(layer) // 2}.{leaf}"] = state.pop(name)
    state["decoder.embed_tokens.weight"] = state["decoder.output_projection.weight"] = state[
        "encoder.embed_tokens.weight"
    ]
    vanilla.load_state_dict(state)
    model.use_depth({"encoder": 3, "decoder": 3})
    with torch.no_grad():
        torch.testing.assert_close(model(**batch())[0], vanilla(**batch())[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_incremental_decoding_equals_the_full_pass_at_every_depth(case):
    model = perturb(build("pre", **case.options)).eval()
    for depth in possible_depths(case.decoder)[:-1]:
        model.use_depth({"decoder": depth})
        check_step_by_step(model, steps=8)


def test_depth_changes_between_sentences_leave_no_stale_cache(norm):
    model = perturb(build(norm, **CYCLE)).eval()
    found = {}
    for depth in (6, 3, 4, 6, 3):
        model.use_depth({"encoder": depth, "decoder": depth})
        now = translate([model])
        assert_same_translations(found.setdefault(depth, now), now)
        check_step_by_step(model, steps=4)
    assert_same_translations(found[3], translate([built_at(model, 3, norm, **CYCLE).eval()]))
    scores = [found[depth][0][0]["positional_scores"][:8] for depth in (3, 6)]
    assert not torch.allclose(*scores)


def test_skipped_layers_have_no_cache():
    model = perturb(build("post", **SEQUENCE)).eval()
    model.use_depth({"encoder": 3, "decoder": 3})
    cache: dict = {}
    with torch.no_grad():
        encoded = model.encoder(batch()["src_tokens"])
        model.decoder(torch.full((3, 1), EOS), encoder_out=encoded, incremental_state=cache)
    ids = {key.split(".")[0] for key in cache}
    used = {f"{layer.self_attn._incremental_state_id}" for layer in model.decoder.layers}
    active = {model.decoder.layers[i].self_attn._incremental_state_id for i in (0, 2, 4)}
    assert ids & used == active


def test_attention_weights_are_those_of_the_last_active_layer(norm):
    model = perturb(build(norm, **CYCLE)).eval()
    smaller = built_at(model, 4, norm, **CYCLE).eval()
    model.use_depth({"encoder": 4, "decoder": 4})
    with torch.no_grad():
        attention = model(**batch())[1]["attn"][0]
        assert torch.equal(attention, smaller(**batch())[1]["attn"][0])


def test_names_indices_and_state_dict_are_those_of_all_layers():
    model = build("post", **CYCLE)
    names, state = [name for name, _ in model.named_modules()], model.state_dict()
    model.use_depth({"encoder": 3, "decoder": 4})
    model.eval()
    with torch.no_grad():
        model(**batch())
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == list(state)
    assert model.encoder.active == (0, 1, 2)
    assert len(model.encoder.layers) == len(list(model.encoder.layers)) == LAYERS


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model = perturb(build("post", **CYCLE, checkpoint_activations=recompute)).train()
        for stack in model.stacks.values():
            stack.limit((0, 1, 2, 3), training=True)
        result = loss(model, batch())
        for stack in model.stacks.values():
            stack.limit((0, 1, 2), training=True)  # the next step's depth
        result.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_mean_gradient_divides_by_the_active_uses():
    gradients = {}
    for mean in (False, True):
        model = perturb(build("post", **CYCLE)).train()
        for stack in model.stacks.values():
            stack.average_gradients(mean)
            stack.limit((0, 1, 2, 3), training=True)
        loss(model, batch()).backward()
        gradients[mean] = {name: p.grad.clone() for name, p in model.named_parameters() if ".layers." in name}
    for name, total in gradients[False].items():
        uses = 2 if ".layers.0." in name else 1
        torch.testing.assert_close(gradients[True][name] * uses, total, rtol=1e-6, atol=1e-6)


def test_depth_of_a_training_step_does_not_apply_to_evaluation(norm):
    model = perturb(build(norm, **CYCLE)).eval()
    with torch.no_grad():
        whole = model(**batch())[0]
        for stack in model.stacks.values():
            stack.limit((0, 1, 2), training=True)
        assert torch.equal(model(**batch())[0], whole)
        assert not torch.allclose(model.train()(**batch())[0], whole)


def test_unknown_depth_is_one_line():
    model = build("post", **CYCLE)
    with pytest.raises(SharingError, match=r"^decoder depth 2: leaves out parameter set 2 .*; allowed: 3, 4, 5, 6$"):
        model.use_depth({"decoder": 2})
