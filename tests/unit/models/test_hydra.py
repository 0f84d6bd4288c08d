"""Configurations of fairseq-hydra-train build the same models as flags of fairseq-train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from omegaconf import OmegaConf
from tiny_models import EMBED, FFN, HEADS, arguments, build, dictionary

from fairseq_sharing.errors import SharingError

TINY = {
    **{f"{stack}_embed_dim": EMBED for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_embed_dim": FFN for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": HEADS for stack in ("encoder", "decoder")},
    "share_all_embeddings": True,
    "dropout": 0.0,
}


def configuration(model=None, *, arch="transformer_sharing", **parts):
    task = {"_name": "translation", "max_source_positions": 64, "max_target_positions": 64}
    cfg = OmegaConf.create({"task": task, **parts, "model": {"_name": arch, **TINY, **(model or {})}})
    OmegaConf.set_struct(cfg, True)
    return cfg


def hydra_build(cfg):
    torch.manual_seed(1)
    symbols = dictionary()
    return models.build_model(cfg.model, SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols))


@pytest.mark.parametrize("layer_map", [[0, 1, 2, 2, 1, 0], "0,1,2,2,1,0"])
def test_a_configuration_builds_the_model_of_the_same_flags(layer_map):
    cfg = configuration({"sharing": "custom", "layer_map": layer_map})
    model, expected = hydra_build(cfg), build(sharing="custom", layer_map=layer_map)
    assert model.sharing == expected.sharing
    assert model.max_positions() == (64, 64), "options of the task are known to the model"
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("preset", ["cycle", "shared_ffn", "tied_transformer_cross"])
def test_a_configuration_takes_a_preset(preset):
    model, expected = hydra_build(configuration({"preset": preset})), build(preset=preset)
    assert model.sharing == expected.sharing
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_configuration_is_completed_for_the_checkpoint():
    cfg = configuration({"sharing": "universal"}, criterion={"_name": "cross_entropy", "sentence_avg": True})
    hydra_build(cfg)
    saved = OmegaConf.to_container(cfg.model)
    assert saved["arch"] == saved["_name"] == "transformer_sharing"
    assert (saved["criterion"], saved["sentence_avg"], saved["task"]) == ("cross_entropy", True, "translation")
    assert saved["encoder_layers"] == 6
    loaded = hydra_build(OmegaConf.create({"model": saved}))
    assert loaded.sharing["decoder"].layer_map == (0,) * 6
    assert loaded.max_positions() == (64, 64)


@pytest.mark.parametrize(
    ("model", "parts", "message"),
    [
        ({"sharring": "none"}, {}, "model.sharring: unknown option; nearest: sharing"),
        ({"xyz": 1}, {}, "model.xyz: unknown option; allowed: the flags of fairseq-train --arch transformer_sharing"),
        ({"admin": "profil"}, {}, "model.admin: 'profil'; allowed: off, profile, closed_form"),
        ({"unique_layers": "x"}, {}, "model.unique_layers: 'x'; allowed: an integer"),
        ({"dropout": True}, {}, "model.dropout: True; allowed: a number"),
        ({"fast": 3}, {}, "model.fast: 3; allowed: true, false"),
        (
            {"sharing": "sequence"},
            {},
            "--unique-layers: missing; --sharing sequence needs a value from 1 to the number of layers (6)",
        ),
        (
            {"sharing": "universal"},
            {"distributed_training": {"ddp_backend": "fully_sharded"}},
            "--ddp-backend fully_sharded cannot shard layers that share parameters; "
            "allowed with --sharing: c10d, legacy_ddp, no_c10d, pytorch_ddp",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(model, parts, message):
    with pytest.raises(SharingError) as caught:
        hydra_build(configuration(model, **parts))
    assert str(caught.value) == message


def test_flags_are_not_changed():
    args = arguments(sharing="universal")
    before = dict(vars(args))
    symbols = dictionary()
    models.build_model(args, SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols))
    assert {name: vars(args)[name] for name in before} == before
