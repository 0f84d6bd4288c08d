"""Layers without feed-forward network: forward pass by hand, decoding, checkpoints and export."""

from __future__ import annotations

import math

import pytest
import torch
from sharing_cases import BY_NAME, LAYERS
from step_by_step import check_step_by_step
from structure_cases import check_checkpoint, export_case, forward_by_hand
from tiny_models import EMBED, FFN, batch, build, component_sizes, loss, perturb

from fairseq_sharing.errors import SharingError

NO_FFN = {"decoder_no_ffn": True}
BOTH = {"decoder_no_ffn": True, "encoder_no_ffn": True}
CYCLE = {"sharing": "cycle", "unique_layers": 3}


@pytest.mark.parametrize("options", [NO_FFN, BOTH, {**NO_FFN, "admin": "closed_form"}])
def test_forward_equals_the_sublayers_by_hand(options, norm):
    if "admin" in options and norm == "pre":
        pytest.skip("Admin is for post-norm stacks")
    model = perturb(build(norm, **CYCLE, **options)).eval()
    torch.testing.assert_close(model(**batch())[0], forward_by_hand(model, batch()), rtol=0, atol=1e-5)


def test_no_parameter_of_the_network_is_left():
    model = build("post", **NO_FFN)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if name.startswith("decoder.") and ("fc" in name or "final" in name)]
    encoder, decoder = component_sizes("encoder"), component_sizes("decoder")
    removed = decoder["ffn"] + 2 * EMBED
    expected = 50 * EMBED + LAYERS * (sum(encoder.values()) + sum(decoder.values()) - removed)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert decoder["ffn"] == 2 * EMBED * FFN + FFN + EMBED


def test_incremental_decoding_equals_the_full_forward_pass(norm):
    check_step_by_step(perturb(build(norm, **CYCLE, **BOTH)).eval())


@pytest.mark.parametrize("fast", [{"fast": True}, {"fast": True, "checkpoint_activations": True}])
def test_the_fast_path_computes_the_same(fast, norm):
    plain, other = (perturb(build(norm, **CYCLE, **NO_FFN, **more)).train() for more in ({}, fast))
    for model in (plain, other):
        loss(model, batch()).backward()
    ours = dict(other.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=2e-5, msg=name)


def test_one_wide_ffn_shares_one_network_in_the_encoder():
    model = build("post", encoder_sharing="universal", encoder_sharing_scope="ffn", **NO_FFN).train()
    layers = model.encoder.layers
    assert len({id(layer.fc1.weight) for layer in layers}) == 1
    assert len({id(layer.self_attn.q_proj.weight) for layer in layers}) == LAYERS
    loss(model, batch()).backward()
    assert layers[0].fc1.weight.grad.abs().max() > 0


def test_checkpoints_resume_and_average(data_dir, tmp_path, norm):
    check_checkpoint(data_dir, tmp_path, norm, NO_FFN)


@pytest.mark.parametrize("options", [NO_FFN, BOTH, {**NO_FFN, "deepnorm": True}, {**NO_FFN, "admin": "closed_form"}])
def test_exported_scores_are_fairseqs(options, norm, data_dir, tmp_path):
    if norm == "pre" and len(options) == 2 and options != BOTH:
        pytest.skip("for post-norm stacks")
    exported = export_case(data_dir, tmp_path, BY_NAME["cycle"], norm, options)
    assert exported.difference.largest < (2e-5 if norm == "pre" else 1e-3)
    if "admin" not in options:
        assert exported.depth_tensors == 0


@pytest.mark.parametrize("kind", ["int8", "int16", "float16", "bfloat16"])
def test_quantized_scores_are_close(kind, data_dir, tmp_path):
    exported = export_case(data_dir, tmp_path, BY_NAME["cycle"], "post", BOTH, quantization=kind)
    assert 0 < exported.difference.mean < 0.1


def test_a_stack_with_a_tiny_variance_is_refused(data_dir, tmp_path):
    """Normalizing twice differs from normalizing once if the variance is as small as the epsilon."""

    def shrink(model):
        layer = model.decoder.layers[-1]
        for module in (layer.self_attn_layer_norm, layer.encoder_attn.out_proj):
            module.weight.mul_(0.001)
            module.bias.mul_(0.001)

    with pytest.raises(SharingError, match=r"log-probabilities differ from fairseq's by .* --engine fairseq"):
        export_case(data_dir, tmp_path, BY_NAME["cycle"], "post", NO_FFN, shrink)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_fc": True}, "--scale-fc True .*--decoder-no-ffn removes"),
        ({"scale_resids": True}, "--scale-resids True .*--decoder-no-ffn removes"),
        ({"b2t": True}, "--decoder-no-ffn True .*--b2t ends at the feed-forward network"),
    ],
)
def test_what_it_cannot_be_combined_with_is_named(options, message):
    with pytest.raises(SharingError, match=message):
        build("post", **NO_FFN, **options)


def test_a_map_of_the_network_alone_ties_nothing_without_it():
    model = build("post", sharing="universal", sharing_scope="ffn", **NO_FFN)
    assert len({id(p) for p in model.decoder.parameters()}) == len(list(model.decoder.named_parameters()))
    assert math.prod(model.encoder.layers[5].fc1.weight.shape) == EMBED * FFN
    assert model.encoder.layers[5].fc1.weight is model.encoder.layers[0].fc1.weight
