"""B2T connections: forward pass by hand, decoding, checkpoints and refusals."""

from __future__ import annotations

import pytest
import torch
from sharing_cases import BY_NAME
from step_by_step import check_step_by_step
from structure_cases import build_lm, check_checkpoint, check_gradients, export_case, forward_by_hand
from tiny_models import EMBED, batch, build, perturb

from fairseq_sharing.b2t.layers import B2T
from fairseq_sharing.errors import SharingError

CYCLE = {"sharing": "cycle", "unique_layers": 3}


def test_forward_equals_the_sublayers_by_hand():
    model = perturb(build("post", **CYCLE, b2t=True)).eval()
    torch.testing.assert_close(model(**batch())[0], forward_by_hand(model, batch()), rtol=0, atol=1e-5)


def test_without_the_input_it_is_plain_post_norm(monkeypatch):
    b2t, plain = (perturb(build("post", **CYCLE, **options)).eval() for options in ({"b2t": True}, {}))
    expected = plain(**batch())[0]
    assert not torch.equal(b2t(**batch())[0], expected)
    added = B2T.residual_connection

    def without_input(layer, x, residual):
        layer._bottom = torch.zeros_like(x)
        return added(layer, x, residual)

    monkeypatch.setattr(B2T, "residual_connection", without_input)
    assert torch.equal(b2t(**batch())[0], expected)


def test_the_input_is_added_once_in_a_language_model():
    """A decoder layer without cross-attention has two sub-layers."""
    torch.manual_seed(1)
    layer = perturb(build_lm(b2t=True)).eval().decoder.layers[0]
    x = torch.randn(3, 2, EMBED)
    middle = layer.self_attn_layer_norm(x + layer.self_attn(x, x, x, need_weights=False)[0])
    expected = layer.final_layer_norm(x + middle + layer.fc2(torch.relu(layer.fc1(middle))))
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=1e-6)


def test_a_pass_that_ends_early_leaves_nothing_behind(monkeypatch):
    model = perturb(build("post", b2t=True)).train()
    before = model(**batch())[0]
    layer = model.encoder.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer.fc1, "forward", lambda _x: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**batch())
    assert torch.equal(model(**batch())[0], before)
    assert layer._bottom is None


def test_incremental_decoding_equals_the_full_forward_pass():
    check_step_by_step(perturb(build("post", **CYCLE, b2t=True)).eval())


@pytest.mark.parametrize("other", [{"fast": True}, {"checkpoint_activations": True}])
def test_other_paths_compute_the_same(other):
    check_gradients({**CYCLE, "b2t": True}, other)


def test_checkpoints_resume_and_average(data_dir, tmp_path):
    check_checkpoint(data_dir, tmp_path, "post", {"b2t": True})


def test_it_is_not_exported(data_dir, tmp_path):
    with pytest.raises(SharingError, match=r"CTranslate2 does not support --b2t True; .* --engine fairseq"):
        export_case(data_dir, tmp_path, BY_NAME["cycle"], "post", {"b2t": True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "pre"}, "--encoder-normalize-before True .*--b2t requires post-norm"),
        ({"admin": "profile"}, "--admin profile .*--b2t replaces its residual connections; allowed: off"),
        ({"encoder_no_ffn": True}, "--encoder-no-ffn True .*--b2t ends at the feed-forward network"),
    ],
)
def test_what_it_cannot_be_combined_with_is_named(options, message):
    with pytest.raises(SharingError, match=message):
        build(**{"norm": "post", **options}, b2t=True)
