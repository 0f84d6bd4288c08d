"""Adapters per depth combined with maps of components and with structures."""

from __future__ import annotations

import pytest
import torch
from depth_models import adapted
from step_by_step import check_step_by_step
from tiny_models import batch

UNTIED = {"sharing": "none", "unique_layers": None}
COMBINED = [
    {**UNTIED, "component_sharing": "ffn=universal;self_attn=cycle:2"},
    {**UNTIED, "cross_stack_sharing": "attention=by_depth"},
    {"decoder_no_ffn": True},
    {"embedding_factor_dim": 4},
    {"deepnorm": True},
    {"b2t": True},
]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("options", COMBINED, ids=str)
def test_adapters_take_effect_in_training_and_in_decoding(options, fast):
    model = adapted("post", fast=fast, **options)
    check_step_by_step(model, steps=4)
    full = model(**batch())[0].detach()
    model.train()
    model(**batch())[0].square().sum().backward()
    factors = [p for name, p in model.named_parameters() if ".depth.lora." in name]
    assert factors
    assert all(p.grad is not None and p.grad.any() for p in factors)
    with torch.no_grad():
        for parameter in factors:
            parameter.zero_()
        assert (model.eval()(**batch())[0] - full).abs().max() > 1e-3
