"""DeepNorm: constants, initial values once per parameter set, forward pass, decoding, checkpoints and export."""

from __future__ import annotations

import math

import pytest
import torch
from sharing_cases import BY_NAME, LAYERS
from step_by_step import check_step_by_step
from structure_cases import build_lm, check_checkpoint, check_gradients, export_case, forward_by_hand
from tiny_models import EMBED, FFN, batch, build, perturb

from fairseq_sharing.deep_norm import constants, layers
from fairseq_sharing.errors import SharingError

CYCLE = {"sharing": "cycle", "unique_layers": 3}


@pytest.mark.parametrize(
    ("depth", "encoder", "decoder"),
    [
        (6, (1.418, 0.497), (2.060, 0.343)),
        (12, (1.761, 0.400), (2.449, 0.289)),
        (18, (1.999, 0.353), (2.711, 0.261)),
    ],
)
def test_constants_of_equal_depths(depth, encoder, decoder):
    assert constants.encoder_constants(depth, depth) == pytest.approx(encoder, abs=6e-4)
    assert constants.decoder_constants(depth) == pytest.approx(decoder, abs=6e-4)


def test_constants_of_other_depths():
    assert constants.encoder_constants(12, 2) == pytest.approx((0.81 * (12**4 * 2) ** 0.0625, 0.87 / 41472**0.0625))
    assert constants.single_stack_constants(8) == pytest.approx((2.0, 64**-0.25))


def test_constants_count_layers_not_parameter_sets():
    model = build("post", sharing="universal", deepnorm=True)
    assert model.encoder.layers[5].alpha == pytest.approx(1.418, abs=6e-4)
    assert {layer.alpha for layer in model.decoder.layers} == {18**0.25}
    assert {layer.alpha for layer in build_lm(deepnorm=True).decoder.layers} == {12**0.25}


def bound(gain: float, inputs: int, outputs: int) -> float:
    """Return the largest value of a Xavier-uniform matrix."""
    return gain * math.sqrt(6 / (inputs + outputs))


@pytest.mark.parametrize("sharing", [{}, {"sharing": "universal"}, {"sharing": "universal", "sharing_scope": "ffn"}])
def test_each_parameter_set_is_drawn_once_with_its_gain(sharing, monkeypatch):
    drawn = []
    draw = layers.nn.init.xavier_uniform_

    def record(tensor, gain=1.0):
        if not tensor.is_meta:
            drawn.append(tensor)
        return draw(tensor, gain)

    model = build("post", **sharing, deepnorm=True)
    betas = {"encoder": 0.87 / (6**5) ** 0.0625, "decoder": 72**-0.25}
    for name, parameter in model.named_parameters():
        if ".layers." not in name or not name.endswith("weight") or "norm" in name:
            continue
        stack, matrix = name.split(".")[0], name.split(".")[-2]
        gain = 1.0 if matrix in ("q_proj", "k_proj") else betas[stack]
        most = bound(gain, *parameter.shape)
        found = parameter.abs().max().item()
        assert 0.9 * most < found <= most, name
    if sharing == {"sharing": "universal"}:
        monkeypatch.setattr(layers.nn.init, "xavier_uniform_", record)
        layer = build("post", **sharing, deepnorm=True).decoder.layers[5]
        own = [tensor for tensor in drawn if tensor is layer.fc1.weight]
        assert len(own) == 1
    assert EMBED < FFN


def test_forward_equals_the_sublayers_by_hand():
    model = perturb(build("post", **CYCLE, deepnorm=True)).eval()
    torch.testing.assert_close(model(**batch())[0], forward_by_hand(model, batch()), rtol=0, atol=1e-5)


def test_with_constants_of_one_it_is_plain_post_norm(monkeypatch):
    one = constants.Constants(1.0, 1.0)
    monkeypatch.setattr(layers, "constants_of", lambda *_: one)
    deep, plain = build("post", **CYCLE, deepnorm=True).eval(), build("post", **CYCLE, seed=5).eval()
    plain.load_state_dict(deep.state_dict())
    assert torch.equal(deep(**batch())[0], plain(**batch())[0])


def test_incremental_decoding_equals_the_full_forward_pass():
    check_step_by_step(perturb(build("post", **CYCLE, deepnorm=True)).eval())


@pytest.mark.parametrize("other", [{"fast": True}, {"checkpoint_activations": True}])
def test_other_paths_compute_the_same(other):
    check_gradients({**CYCLE, "deepnorm": True}, other)


def test_checkpoints_resume_and_average(data_dir, tmp_path):
    check_checkpoint(data_dir, tmp_path, "post", {"deepnorm": True})


@pytest.mark.parametrize("layernorm_embedding", [False, True])
def test_folded_matrices_stay_shared(layernorm_embedding, data_dir, tmp_path):
    options = {"layernorm_embedding": layernorm_embedding}
    (tmp_path / "plain").mkdir()
    plain = export_case(data_dir, tmp_path / "plain", BY_NAME["cycle"], "post", options)
    folded = export_case(data_dir, tmp_path, BY_NAME["cycle"], "post", {**options, "deepnorm": True})
    assert folded.difference.largest < 1e-4
    assert folded.depth_tensors == 0
    # The last layer's last norm of each stack has no layer after it, and the embeddings and positions of the stacks,
    # or their norms, have different scales.
    last_norms, scaled = 2 * 2, 2 if not layernorm_embedding else 0
    output = 1 if not layernorm_embedding else 0  # the output projection is not scaled
    assert folded.tensors[1] == plain.tensors[1] + last_norms + scaled + output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "pre"}, "--encoder-normalize-before True .*--deepnorm requires post-norm"),
        ({"decoder_normalize_before": True}, "--decoder-normalize-before True .*--deepnorm requires post-norm"),
        ({"admin": "profile"}, "--admin profile .*--deepnorm replaces its residual connections; allowed: off"),
        ({"decoder_layers_to_keep": "0,1"}, "--decoder-layers-to-keep 0,1 .*--deepnorm depend on the number of layers"),
        ({"b2t": True}, "--deepnorm True .*--b2t replaces its residual connections"),
    ],
)
def test_what_it_cannot_be_combined_with_is_named(options, message):
    with pytest.raises(SharingError, match=message):
        build(**{"norm": "post", **options}, deepnorm=True)


def test_language_model_has_the_constants_of_one_stack():
    model = build_lm(deepnorm=True)
    assert model.decoder.layers[LAYERS - 1].residual_weight[0].item() == pytest.approx(12**0.25)
    most = bound(48**-0.25, EMBED, FFN)
    assert 0.9 * most < model.decoder.layers[0].fc1.weight.abs().max().item() <= most
