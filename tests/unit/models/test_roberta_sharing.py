"""fairseq's RoBERTa with shared layers: ties, equality with fairseq's outputs, checkpoints, and a map change."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from sharing_cases import BY_NAME
from tiny_models import PAD, arguments, assert_equal_models, batch, dictionary, perturb, to_bytes

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing

STACK = "encoder.sentence_encoder"


def build_roberta(arch: str = "roberta_sharing", seed: int = 1, **changes):
    args = arguments(arch=arch, max_positions=64, attention_dropout=0.0, **changes)
    torch.manual_seed(seed)
    return perturb(models.build_model(args, SimpleNamespace(source_dictionary=dictionary()))).eval()


def source(case, name: str) -> str:
    return (
        case.source(name.replace("sentence_encoder.", "")).replace("encoder.", f"{STACK}.", 1)
        if STACK in name
        else name
    )


@pytest.mark.parametrize("name", ["universal", "cycle_rev", "none", "cycle-fast"])
def test_outputs_are_those_of_fairseq_s_roberta_with_copies(name):
    case = BY_NAME[name]
    model, stock = build_roberta(**case.options), build_roberta("roberta", seed=9)
    ours = dict(model.named_parameters(remove_duplicate=False))
    for key, parameter in ours.items():
        assert parameter is ours[source(case, key)] or "lm_head.weight" in key
    with torch.no_grad():
        for key, parameter in stock.named_parameters():
            parameter.copy_(ours[key])
        words = batch()["src_tokens"]
        masked = words != PAD
        torch.testing.assert_close(
            model(words, masked_tokens=masked)[0], stock(words, masked_tokens=masked)[0], rtol=0, atol=1e-5
        )


def test_checkpoint_has_each_tensor_once_and_keeps_a_changed_map():
    model = build_roberta(sharing="universal")
    model.stacks[STACK].change_map(StackSharing((0, 0, 1, 1, 0, 2)))
    model.map_changed_by = "unshare at update 2"
    state = torch.load(io.BytesIO(to_bytes(model.state_dict())), weights_only=True)
    assert {int(k.split(".layers.")[1].split(".")[0]) for k in state if ".layers." in k} == {0, 2, 5}
    other = build_roberta(sharing="universal", seed=5)
    other.load_state_dict(state)
    assert_equal_models(model, other)


def test_other_maps_are_refused_by_flag():
    with pytest.raises(SharingError, match="--encoder-layers and --sharing"):
        build_roberta(sharing="universal").load_state_dict(build_roberta(sharing="sandwich").state_dict())
