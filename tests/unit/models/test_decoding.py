"""Step-by-step decoding equals the full forward pass, except for a module that is used at two depths.

fairseq keys the decoding cache by attention module: a reused module overwrites its own keys and values. Such a model
trains correctly but decodes incorrectly, so every sharing strategy is tested.
"""

from __future__ import annotations

import pytest
import torch
from sharing_cases import BY_NAME, CASES, LAYERS
from step_by_step import check_step_by_step
from tiny_models import batch, build_case

from fairseq_sharing.layer_map import num_unique


def test_case_reuses_each_set_often_enough():
    for case in CASES:
        if case.shares:
            assert 2 * num_unique(case.encoder) <= LAYERS
            assert 2 * num_unique(case.decoder) <= LAYERS


def test_incremental_decoding_equals_the_full_forward_pass(model):
    check_step_by_step(model)


def test_model_prepared_for_generation_decodes_the_same(case, norm):
    model = build_case(case, norm)
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    check_step_by_step(model, steps=8)


def tied_pairs():
    for case in CASES:
        for depth, label in enumerate(case.decoder):
            if case.ties("self_attn.") and case.decoder.index(label) != depth:
                yield case, case.decoder.index(label), depth
                break


@pytest.mark.parametrize(("case", "owner", "depth"), list(tied_pairs()), ids=lambda value: getattr(value, "name", None))
def test_reused_attention_module_fails_the_same_check(case, owner, depth, norm):
    model = build_case(case, norm).eval()
    inputs = batch()
    with torch.no_grad():
        before = model(**inputs)[0]
        layers = model.decoder.layers
        layers[depth].self_attn = layers[owner].self_attn
        assert torch.equal(model(**inputs)[0], before), "training does not reveal the error"
    with pytest.raises(AssertionError, match="differs from the full forward pass by"):
        check_step_by_step(model)


def test_reused_layers_fail_the_same_check(norm):
    model = build_case(BY_NAME["universal"], norm).eval()
    model.decoder.layers = torch.nn.ModuleList([model.decoder.layers[0]] * LAYERS)
    with pytest.raises(AssertionError, match="differs from the full forward pass by"):
        check_step_by_step(model)


def test_check_needs_no_sharing_to_pass(vanilla):
    """The check itself is correct: fairseq's own transformer passes it."""
    check_step_by_step(vanilla, steps=8)


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_learned_pos": True, "encoder_learned_pos": True},
        {"layernorm_embedding": True},
        {"adaptive_softmax_cutoff": "15,30", "share_all_embeddings": False},
        {"share_all_embeddings": False},
        {"no_token_positional_embeddings": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_incremental_decoding_with_other_options(options, norm):
    check_step_by_step(build_case(BY_NAME["cycle_rev"], norm, **options).eval(), steps=8)
