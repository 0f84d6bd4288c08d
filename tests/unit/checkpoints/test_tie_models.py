"""Models whose layers have more than fairseq's Transformer: what belongs to a depth, and other architectures."""

from __future__ import annotations

import copy
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from moeut_models import BANKS
from sharing_cases import BY_NAME
from tied_models import CYCLE, STACKS, checkpoint_of, load, logits, vanilla_checkpoint
from tiny_models import EMBED, FFN, arguments, batch, build, build_case, dictionary, perturb

from fairseq_sharing.checkpoints.tie import tie
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing


def test_admin_s_residual_weights_stay_with_their_depth():
    model = build_case(BY_NAME["none"], "post", admin="closed_form")
    checkpoint = checkpoint_of(model, arguments(admin="closed_form"))
    shared = load(tie(checkpoint, CYCLE, "average", align=True), **CYCLE, admin="closed_form")
    for stack in STACKS:
        for ours, theirs in zip(getattr(shared, stack).layers, getattr(model, stack).layers, strict=True):
            assert torch.equal(ours.residual_weight, theirs.residual_weight)
    assert not shared.admin_pending


@pytest.mark.parametrize("pending", [True, False])
def test_admin_is_profiled_after_tying_only_if_it_was_not_before(pending):
    model = build_case(BY_NAME["none"], "post", admin="profile")
    model.admin_pending = pending
    tied = tie(checkpoint_of(model, arguments(admin="profile")), CYCLE)
    assert load(tied, **CYCLE, admin="profile").admin_pending == pending


def test_act_and_the_depth_signal_are_copied(norm):
    changes = {"act": "both", "depth_signal": "learned", "position_per_depth": True}
    model = build_case(BY_NAME["none"], norm, **changes)
    tied = tie(checkpoint_of(model, arguments(norm, **changes)), {"sharing": "none"})
    assert torch.equal(logits(load(tied, norm, **changes)), logits(model))
    shared = load(tie(checkpoint_of(model, arguments(norm, **changes)), CYCLE), norm, **changes, **CYCLE)
    for name, parameter in model.named_parameters():
        if "halting" in name or "depth_signal" in name:
            assert torch.equal(shared.get_parameter(name), parameter), name


def test_a_map_that_a_schedule_changed_is_read_from_the_checkpoint():
    """The options in the checkpoint are those of the start; the maps are the current ones."""
    case = BY_NAME["universal"]
    model = build_case(case, "post")
    for stack in STACKS:
        getattr(model, stack).change_map(StackSharing((0, 0, 0, 1, 2, 3)))
    model.map_changed_by = "a schedule at update 100"
    perturb(model, seed=12)
    tied = tie(checkpoint_of(model, arguments(**case.options)), {"sharing": "sequence", "unique_layers": 2}, "average")
    assert tied["model"]["_extra_state"].keys() == {"stacks", "aliases"}
    shared = load(tied, sharing="sequence", unique_layers=2)
    layers = model.encoder.layers
    mean = (layers[3].fc1.bias + layers[4].fc1.bias + layers[5].fc1.bias) / 3
    torch.testing.assert_close(shared.encoder.layers[5].fc1.bias, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(shared.encoder.layers[0].fc1.bias, layers[0].fc1.bias, rtol=0, atol=1e-6)


# Other models.


def test_moeut_is_tied_but_not_aligned():
    args = {"sharing": "none", **BANKS}
    model = perturb(build("pre", arch="transformer_moeut", **args))
    checkpoint = checkpoint_of(model, arguments("pre", "transformer_moeut", **args))
    same = load(tie(checkpoint, {"sharing": "none"}), "pre", arch="transformer_moeut", **args)
    assert torch.equal(logits(same), logits(model))
    tied = tie(checkpoint, CYCLE, "average")
    shared = load(tied, "pre", arch="transformer_moeut", **{**args, **CYCLE})
    mean = (model.encoder.layers[1].ffn.up + model.encoder.layers[4].ffn.up) / 2
    torch.testing.assert_close(shared.encoder.layers[4].ffn.up, mean, rtol=0, atol=1e-6)
    with pytest.raises(SharingError, match=r"^--align cannot reorder self_attn"):
        tie(checkpoint, CYCLE, "average", align=True)


LANGUAGE_MODEL = {
    "decoder_input_dim": EMBED,
    "decoder_output_dim": EMBED,
    "tokens_per_sample": 32,
    "share_decoder_input_output_embed": True,
}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_fairseq_s_language_model_is_tied(norm):
    args = arguments(norm, "transformer_lm", **LANGUAGE_MODEL)
    model = perturb(build(norm, arch="transformer_lm_sharing", **LANGUAGE_MODEL)).eval()
    state = {name: value for name, value in model.state_dict().items() if name != "_extra_state"}
    # fairseq writes the arguments of its own language model as a dict, without the architecture.
    configuration = {**vars(args), "_name": "transformer_lm"}
    del configuration["arch"]
    tied = tie({"cfg": {"model": configuration}, "model": state}, CYCLE, "average", align=True)
    assert vars(tied["cfg"]["model"])["arch"] == "transformer_lm_sharing"
    shared = load(tied, norm, arch="transformer_lm_sharing", **LANGUAGE_MODEL, **CYCLE)
    assert shared.sharing == {"decoder": StackSharing((0, 1, 2, 0, 1, 2))}
    assert shared.decoder.layers[4].fc1.weight is shared.decoder.layers[1].fc1.weight
    assert shared.decoder.layers[4].normalize_before == (norm == "pre")
    with pytest.raises(SharingError, match=r"^--encoder-layers 4: the model has no encoder; allowed: decoder$"):
        tie({"cfg": {"model": configuration}, "model": state}, {**CYCLE, "encoder_layers": 4})


def test_fairseq_s_roberta_is_tied():
    sizes = {
        "encoder_layers": 4,
        "encoder_embed_dim": EMBED,
        "encoder_ffn_embed_dim": FFN,
        "encoder_attention_heads": 2,
    }
    args = Namespace(arch="roberta", max_positions=64, **sizes)
    task = SimpleNamespace(source_dictionary=dictionary(), max_positions=lambda: 64)
    model = perturb(models.build_model(args, task)).eval()
    tied = tie(checkpoint_of(model, args), {"sharing": "cycle", "unique_layers": 2}, "average", align=True)
    shared = models.build_model(copy.deepcopy(tied["cfg"]["model"]), task)
    shared.load_state_dict(tied["model"])
    assert tied["model"]["_extra_state"] == shared.state_dict()["_extra_state"]
    assert shared.sharing == {"encoder.sentence_encoder": StackSharing((0, 1, 0, 1))}
    same = models.build_model(tie(checkpoint_of(model, args), {"sharing": "none"})["cfg"]["model"], task).eval()
    same.load_state_dict(tie(checkpoint_of(model, args), {"sharing": "none"})["model"])
    tokens = batch()["src_tokens"]
    with torch.no_grad():
        torch.testing.assert_close(same(tokens)[0], model(tokens)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("transformer", "transformer_sharing"),
        ("transformer_iwslt_de_en", "transformer_sharing_iwslt_de_en"),
        ("transformer_vaswani_wmt_en_de_big", "transformer_sharing"),
        ("transformer_sharing_tiny", "transformer_sharing_tiny"),
    ],
)
def test_architectures_of_fairseq_s_transformer_are_tied(arch, expected):
    source = vanilla_checkpoint()
    source["cfg"]["model"].arch = arch
    tied = tie(source, CYCLE)
    assert vars(tied["cfg"]["model"])["arch"] == vars(tied["cfg"]["model"])["_name"] == expected


@pytest.mark.parametrize("arch", ["transformer_align", "fconv_iwslt_de_en", "mine"])
def test_other_architectures_are_refused_by_name(arch):
    source = vanilla_checkpoint()
    source["cfg"]["model"].arch = arch
    with pytest.raises(SharingError) as caught:
        tie(source, CYCLE)
    assert str(caught.value) == (
        f"tie does not support the checkpoint's --arch {arch}; allowed: architectures of fairseq's transformer, "
        "transformer_lm, roberta, and those of this package"
    )
