"""Decoding word by word gives what the whole forward pass gives; a module used at two depths does not.

fairseq keys the decoding cache by attention module: a reused module overwrites its own keys and values. Such a model
trains well and translates badly, so this is checked for every way of sharing.
"""

from __future__ import annotations

import pytest
import torch
from sharing_cases import BY_NAME, CASES, LAYERS
from tiny_models import EOS, PAD, VOCABULARY, batch, build_case

from fairseq_sharing.layer_map import num_unique

STEPS, BEAM, TOLERANCE = 10, 3, 1e-5
# New order of the beams of 3 sentences after each step: kept, swapped, and the same hypothesis twice.
ORDERS = ([1, 1, 0, 3, 4, 5, 8, 6, 8], [0, 2, 2, 5, 5, 5, 6, 7, 8], [2, 1, 0, 3, 3, 4, 7, 6, 7])


@torch.no_grad()
def check_step_by_step(model, steps: int = STEPS) -> None:
    """Decode a padded batch with a reordered beam word by word, and compare each step with a full forward pass.

    Raises:
        AssertionError: the output of a step differs by more than 1e-5.
    """
    generator = torch.Generator().manual_seed(11)
    inputs = batch()
    assert (inputs["src_tokens"] == PAD).any()
    encoder, decoder = model.encoder, model.decoder
    sentences = torch.arange(3).repeat_interleave(BEAM)
    encoded = encoder.reorder_encoder_out(encoder(inputs["src_tokens"], src_lengths=inputs["src_lengths"]), sentences)
    words = torch.full((len(sentences), 1), EOS)
    cache: dict = {}
    for step in range(steps):
        one = decoder(words, encoder_out=encoded, incremental_state=cache)[0][:, -1]
        whole = decoder(words, encoder_out=encoded)[0][:, -1]
        difference = (one - whole).abs().max().item()
        assert difference <= TOLERANCE, f"step {step + 1} differs from the full forward pass by {difference:.2g}"
        order = torch.tensor(ORDERS[step % len(ORDERS)])
        if step == steps - 3:  # the second sentence is finished: its beams leave the batch
            order = order[torch.tensor([0, 1, 2, 6, 7, 8])]
        elif step > steps - 3:
            order = torch.tensor([1, 1, 2, 4, 3, 4])
        encoded = encoder.reorder_encoder_out(encoded, order)
        decoder.reorder_incremental_state_scripting(cache, order)
        chosen = torch.randint(4, VOCABULARY, (len(order), 1), generator=generator)
        words = torch.cat([words[order], chosen], dim=1)


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
        assert torch.equal(model(**inputs)[0], before), "in training nothing shows it"
    with pytest.raises(AssertionError, match="differs from the full forward pass by"):
        check_step_by_step(model)


def test_reused_layers_fail_the_same_check(norm):
    model = build_case(BY_NAME["universal"], norm).eval()
    model.decoder.layers = torch.nn.ModuleList([model.decoder.layers[0]] * LAYERS)
    with pytest.raises(AssertionError, match="differs from the full forward pass by"):
        check_step_by_step(model)


def test_check_needs_no_sharing_to_pass(vanilla):
    """The check itself is right: fairseq's own transformer passes it."""
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
