"""Check that step-by-step decoding equals the full forward pass, for the tests of all models."""

from __future__ import annotations

import torch
from tiny_models import EOS, PAD, VOCABULARY, batch

STEPS, BEAM, TOLERANCE = 10, 3, 1e-5
# New order of the beams of 3 sentences after each step: unchanged, swapped, and the same hypothesis twice.
ORDERS = ([1, 1, 0, 3, 4, 5, 8, 6, 8], [0, 2, 2, 5, 5, 5, 6, 7, 8], [2, 1, 0, 3, 3, 4, 7, 6, 7])


@torch.no_grad()
def check_step_by_step(model, steps: int = STEPS) -> None:
    """Decode a padded batch with a reordered beam step by step, and compare each step with a full forward pass.

    Raises:
        AssertionError: if the output of a step differs by more than 1e-5.
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
