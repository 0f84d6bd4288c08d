"""Maps per component and sets across stacks: ties, outputs, gradients and decoding, against fairseq's own model."""

from __future__ import annotations

import pytest
import torch
from component_cases import BY_NAME, CASES, source
from sharing_cases import LAYERS
from step_by_step import check_step_by_step
from tiny_models import EMBEDDING_ALIASES, VOCABULARY, assert_equal_models, batch, build, loss, perturb

from fairseq_sharing.checkpoints.sharing_state import find_aliases
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.tying import count_uses

FAST = (False, True)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def built(case, norm="post", seed=1, **changes):
    return perturb(build(norm, seed=seed, **case.options, **changes)).eval()


def vanilla(case, model, norm):
    """fairseq's own transformer with copies of the weights that the case assigns to each layer."""
    stock = build(norm, arch="transformer", seed=99).eval()
    ours = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(ours[source(case, name)])
    return stock


def test_each_name_is_the_parameter_of_its_owner(case):
    model = built(case)
    names = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in names.items():
        assert parameter is names[EMBEDDING_ALIASES.get(name, source(case, name))], name
    owners = {source(case, name) for name in names if ".layers." in name}
    assert len({id(names[name]) for name in owners}) == len(owners), "different sets are different parameters"
    inside = {id(p): p.numel() for name, p in names.items() if ".layers." in name}
    assert sum(inside.values()) == case.parameters
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("fast", FAST)
def test_outputs_and_decoding_equal_a_vanilla_model_with_the_weights_copied(case, norm, fast):
    model = built(case, norm, fast=fast)
    stock = vanilla(case, model, norm)
    with torch.no_grad():
        ours, theirs = model(**batch())[0], stock(**batch())[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if fast else 1e-6)
    assert ours.std() > 0.5
    check_step_by_step(model, steps=8)


def test_gradients_are_sums_over_all_uses_of_both_stacks(case):
    model = built(case)
    stock = vanilla(case, model, "post")
    for one in (model, stock):
        loss(one, batch()).backward()
    expected: dict[str, torch.Tensor] = {}
    for name, parameter in stock.named_parameters():
        owner = source(case, name)
        expected[owner] = expected[owner] + parameter.grad if owner in expected else parameter.grad
    ours = dict(model.named_parameters(remove_duplicate=False))
    for owner, gradient in expected.items():
        torch.testing.assert_close(ours[owner].grad, gradient, rtol=1e-4, atol=1e-4)


def test_equal_maps_of_all_components_are_the_layer_map(norm):
    """Same tensors, names and bits, and the same record in the checkpoint."""
    maps = ";".join(f"{part}=cycle_rev:3" for part in ("self_attn", "encoder_attn", "ffn", "layer_norm"))
    one = build(norm, component_sharing=maps)
    other = build(norm, sharing="cycle_rev", unique_layers=3)
    assert_equal_models(one, other)
    assert one.state_dict()["_extra_state"] == other.state_dict()["_extra_state"]
    assert one.sharing["decoder"] == StackSharing((0, 1, 2, 2, 1, 0))


def test_equal_maps_of_some_components_are_a_scope(norm):
    one = build(norm, component_sharing="ffn=cycle:2;self_attn=cycle:2")
    other = build(norm, sharing="cycle", unique_layers=2, sharing_scope="self_attn,ffn")
    assert_equal_models(one, other)
    assert one.state_dict()["_extra_state"] == other.state_dict()["_extra_state"]
    assert "version" not in one.state_dict()["_extra_state"]


def test_one_ffn_and_own_attention_by_hand():
    model = built(BY_NAME["one_ffn"])
    layers = [*model.encoder.layers, *model.decoder.layers]
    assert len({id(layer.fc1.weight) for layer in layers}) == 1
    assert len({id(layer.self_attn.k_proj.weight) for layer in layers}) == 2 * LAYERS
    mixed = built(BY_NAME["mixed"])
    uses = count_uses(mixed.encoder, mixed.sharing["encoder"])
    assert uses[mixed.encoder.layers[0].fc1.weight] == 6
    assert uses[mixed.encoder.layers[1].self_attn.k_proj.weight] == 3
    assert mixed.encoder.layers[0].final_layer_norm.weight not in uses


def test_the_encoder_s_owner_changes_the_decoder():
    model = built(BY_NAME["tied_attention"])
    encoded = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(4))
    memory = {"encoder_out": [encoded], "encoder_padding_mask": []}
    words = batch()["prev_output_tokens"]
    with torch.no_grad():
        before = model.decoder(words, encoder_out=memory)[0]
        model.encoder.layers[0].self_attn.v_proj.weight.mul_(1.5)
        after = model.decoder(words, encoder_out=memory)[0]
    assert before.shape[-1] == VOCABULARY
    assert (before - after).abs().max() > 0.01


def test_cross_attention_is_another_module_with_the_same_parameters():
    layer = built(BY_NAME["tied_attention"]).decoder.layers[0]
    assert layer.encoder_attn is not layer.self_attn
    assert layer.encoder_attn.k_proj.weight is layer.self_attn.k_proj.weight
    assert layer.encoder_attn.encoder_decoder_attention
    assert layer.self_attn.self_attention


def test_admin_and_depth_signals_stay_with_the_layer():
    model = build("post", admin="closed_form", depth_signal="learned", **BY_NAME["tied"].options)
    weights = [layer.residual_weight for layer in [*model.encoder.layers, *model.decoder.layers]]
    assert len({id(weight) for weight in weights}) == 2 * LAYERS
    assert not [name for name in find_aliases(model) if "residual" in name or "depth_signal" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_attention_heads": 4}, "--encoder-attention-heads 2 and --decoder-attention-heads 4; allowed: equal"),
        ({"decoder_ffn_embed_dim": 8}, "--encoder-ffn-embed-dim 32 and --decoder-ffn-embed-dim 8; allowed: equal"),
        (
            {"decoder_embed_dim": 8, "share_all_embeddings": False},
            "--encoder-embed-dim 16 and --decoder-embed-dim 8; allowed: equal values, as both stacks share self_attn",
        ),
        ({"no_cross_attention": True}, "cannot be combined with --no-cross-attention"),
        (
            {"decoder_no_ffn": True},
            "cannot be combined with --decoder-no-ffn: the layers of one stack lack a part of ffn",
        ),
        ({"component_sharing": "ffn=cycle:2"}, "ffn of the encoder also has a map in --component-sharing"),
        ({"encoder_layerdrop": 0.1}, "--encoder-layerdrop 0.1 cannot be combined with this model"),
    ],
)
def test_stacks_that_cannot_share_are_refused(options, message):
    with pytest.raises(SharingError) as error:
        build("post", **{**BY_NAME["tied"].options, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["transformer_moeut", "transformer_lm_moeut"])
@pytest.mark.parametrize("name", ["component_sharing", "cross_stack_sharing"])
def test_moeut_refuses_maps_of_components(arch, name):
    from fairseq import models

    options = {name: "ffn=universal"}
    with pytest.raises(SharingError) as error:
        models.ARCH_CONFIG_REGISTRY[arch](build_arguments(arch, options))
    assert f"--{name.replace('_', '-')} ffn=universal" in str(error.value)
    assert "use --sharing and --sharing-scope" in str(error.value)


def build_arguments(arch, options):
    from argparse import Namespace

    return Namespace(arch=arch, **options)


@pytest.mark.parametrize("arch", ["transformer_lm_sharing", "roberta_sharing"])
def test_a_model_of_one_stack_has_component_maps_but_no_sets_across_stacks(arch):
    from fairseq import models

    def resolve(**options):
        args = build_arguments(arch, options)
        models.ARCH_CONFIG_REGISTRY[arch](args)
        return args

    assert resolve(component_sharing="ffn=universal").component_sharing == "ffn=universal"
    with pytest.raises(SharingError, match="the model has only one stack, the "):
        resolve(cross_stack_sharing="ffn=universal")
