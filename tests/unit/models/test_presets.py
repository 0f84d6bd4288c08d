"""Presets: their options and sizes, and that each trains, decodes, resumes, averages, is described and exported."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq import models
from step_by_step import check_step_by_step
from tied_models import logits
from tiny_models import arguments, build, make_trainer, perturb, save, tensors, train_step

from fairseq_sharing import flags
from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.recorded_state import refuse_incomplete
from fairseq_sharing.description import counts
from fairseq_sharing.description.map_rows import map_rows
from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.presets import PRESETS, apply_preset
from fairseq_sharing.models.sharing_options import known_options

# Presets that need structures which the installed models may lack.
USABLE = [name for name, preset in PRESETS.items() if known_options().issuperset(preset.options)]
# For a model of width 16.
SMALL = {"albert": {"embedding_factor_dim": 8}}
BIG = "transformer_sharing_wmt_en_de_big"
# The vocabulary with which Transformer Big has 228M parameters, as in Pires et al.
VOCABULARY = 50_000


def tiny(name: str) -> dict:
    """Return the options of a tiny model with a preset."""
    return {"preset": name, **SMALL.get(name, {})}


def resolve(arch="transformer_sharing", **options) -> Namespace:
    args = Namespace(arch=arch, **options)
    models.ARCH_CONFIG_REGISTRY[arch](args)
    return args


def millions(**options) -> int:
    args = resolve(BIG, share_all_embeddings=True, **options)
    model = counts.build_without_storage(args, VOCABULARY)
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)


@pytest.mark.parametrize("name", USABLE)
def test_every_preset_trains_decodes_resumes_and_averages(name, data_dir, tmp_path):
    case = Namespace(options=tiny(name))
    trainer = make_trainer(data_dir, case)
    for seed in (3, 4):
        train_step(trainer, seed)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    refuse_incomplete(load_checkpoint(path)["model"])
    resumed = make_trainer(data_dir, case)
    resumed.load_checkpoint(str(path))
    for one in (trainer, resumed):
        train_step(one, 5)
    after = tensors(trainer.model.state_dict())
    assert all(torch.equal(value, after[key]) for key, value in tensors(resumed.model.state_dict()).items())
    average_checkpoints([path, save(trainer, tmp_path / "checkpoint2.pt")], tmp_path / "mean.pt")
    averaged = build("post", seed=5, **tiny(name))
    averaged.load_state_dict(load_checkpoint(tmp_path / "mean.pt")["model"])
    assert logits(averaged).isfinite().all()
    check_step_by_step(trainer.model.eval(), steps=8)


@pytest.mark.parametrize("name", USABLE)
def test_every_preset_is_exported_or_refused_in_one_line(name, data_dir, tmp_path):
    from fairseq_sharing.decoding.ctranslate2_export import export
    from fairseq_sharing.decoding.model_files import ModelFiles

    trainer = make_trainer(data_dir, Namespace(options=tiny(name)))
    train_step(trainer)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    files = ModelFiles(
        str(path), checkpoints=(path,), dictionaries=data_dir, languages={"source": "en", "target": "de"}
    )
    exported = export(files, tmp_path / "out")
    assert exported.difference.largest < 1e-2
    used, stored = exported.tensors
    assert used - stored > 3, "more than the embeddings is stored once"


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_preset_decodes_step_by_step(name, norm):
    check_step_by_step(perturb(build(norm, **tiny(name))).eval(), steps=8)


@pytest.mark.parametrize("name", USABLE)
def test_every_preset_is_built_at_the_size_of_transformer_big_and_described(name):
    args = resolve(BIG, share_all_embeddings=True, preset=name)
    model = counts.build_without_storage(args, 100)
    described = counts.measure(name, args, 100, 7)
    assert sum(described.unique.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(described.unique.values()) < sum(described.effective.values())
    layers = args.encoder_layers + args.decoder_layers
    rows = map_rows(model)
    assert any(max(row.uses) > 1 for row in rows)
    for row in rows:
        assert len(row.labels) == layers / 2
        assert row.across_stacks or sum(row.uses) == len(row.labels)


def test_shared_ffns_have_the_published_sizes():
    """Source: Pires et al. 2023: Transformer Big 228M; one, two and three FFNs in the encoder 186M, 194M and 202M."""
    assert millions() == 228
    assert [millions(encoder_component_sharing=f"ffn=sequence:{m}") for m in (1, 2, 3)] == [186, 194, 202]
    assert [millions(encoder_component_sharing=f"ffn=cycle:{m}") for m in (2, 3)] == [194, 202]


@pytest.mark.skipif("one_wide_ffn" not in USABLE, reason="requires --decoder-no-ffn")
def test_one_wide_ffn_has_the_published_sizes():
    """Source: Pires et al. 2023: 135M, 177M, 228M and 328M with widths of 4,096 to 98,304."""
    assert resolve(BIG, preset="one_wide_ffn").encoder_ffn_embed_dim == 49_152
    widths = (4_096, 24_576, 98_304)
    assert [millions(preset="one_wide_ffn", encoder_ffn_embed_dim=width) for width in widths] == [135, 177, 328]
    assert millions(preset="one_wide_ffn") == 228


def test_sizes_by_hand():
    """Attention of 4 (d d + d), an FFN of 2 d f + f + d, LayerNorms of 2 d; d = 16, f = 32, 6 + 6 layers."""
    attention, ffn, norm = 4 * (16 * 16 + 16), 2 * 16 * 32 + 32 + 16, 2 * 16
    expected = {
        "shared_ffn": 18 * attention + 2 * ffn + 30 * norm,
        "shared_ffn_across_stacks": 18 * attention + ffn + 30 * norm,
        "shared_attention": 3 * attention + 12 * ffn + 30 * norm,
        "tied_transformer": 12 * attention + 6 * ffn + 18 * norm,
        "tied_transformer_cross": 6 * attention + 6 * ffn + 18 * norm,
        "sandwich": 9 * attention + 6 * ffn + 15 * norm,
        **dict.fromkeys(("sequence", "cycle", "cycle_rev"), 9 * attention + 6 * ffn + 15 * norm),
    }
    for name, count in expected.items():
        inside = {id(p): p.numel() for key, p in build("post", preset=name).named_parameters() if ".layers." in key}
        assert sum(inside.values()) == count, name
    assert {*expected, "albert", "one_wide_ffn"} == set(PRESETS)


def test_the_paper_s_presets_have_half_as_many_sets_as_layers():
    args = resolve(preset="cycle_rev", encoder_layers=12, decoder_layers=5)
    assert (args.sharing, args.encoder_unique_layers, args.decoder_unique_layers) == ("cycle_rev", 6, 3)
    assert args.preset is None, "the checkpoint records options, not the name"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"unique_layers": 2}, {"sharing": "cycle", "unique_layers": 2, "encoder_unique_layers": None}),
        ({"sharing": "universal"}, {"sharing": "universal", "unique_layers": None, "encoder_unique_layers": None}),
        (
            {"encoder_sharing": "universal"},
            {
                "sharing": "cycle",
                "encoder_sharing": "universal",
                "encoder_unique_layers": None,
                "decoder_unique_layers": 3,
            },
        ),
        ({"decoder_unique_layers": 2}, {"encoder_unique_layers": 3, "decoder_unique_layers": 2}),
    ],
)
def test_given_flags_win(given, expected):
    args = resolve(preset="cycle", **given)
    assert {name: getattr(args, name) for name in expected} == expected


def test_the_log_lists_what_a_preset_sets_and_what_was_given(caplog):
    with caplog.at_level("INFO"):
        resolve(preset="sandwich", sharing="none")
        resolve(preset="shared_ffn")
    lines = [record.message for record in caplog.records if record.name.endswith("presets")]
    assert lines == [
        "preset sandwich: -; given: --sharing none",
        "preset shared_ffn: --component-sharing ffn=universal",
    ]


def test_a_language_model_takes_presets_of_one_stack():
    args = resolve("transformer_lm_sharing", preset="cycle", decoder_layers=8)
    assert (args.sharing, args.decoder_unique_layers) == ("cycle", 4)


@pytest.mark.parametrize("arch", ["transformer_lm_sharing", "roberta_sharing"])
@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.both])
def test_presets_of_both_stacks_are_refused_for_a_single_one(arch, name):
    with pytest.raises(SharingError) as error:
        resolve(arch, preset=name)
    assert str(error.value) == (
        f"--preset {name}: needs an encoder and a decoder, which this model does not have; "
        "allowed: sequence, cycle, cycle_rev, sandwich, albert, shared_ffn, shared_attention"
    )


def test_unknown_presets_and_options_are_refused_in_one_line():
    with pytest.raises(SharingError) as error:
        resolve(preset="alberta")
    assert str(error.value) == f"--preset alberta: no such preset; allowed: {', '.join(PRESETS)}"
    with pytest.raises(SharingError) as error:
        apply_preset(
            Namespace(preset="one_wide_ffn"), {"encoder_component_sharing", "component_sharing"}, lambda _: None
        )
    assert str(error.value) == (
        "--preset one_wide_ffn: needs --decoder-no-ffn, which this model does not have; "
        "allowed: shared_ffn, shared_attention"
    )


def test_an_experiment_s_train_block_takes_a_preset():
    args = flags.parse({"arch": "transformer_sharing", "preset": "shared_ffn", "share_all_embeddings": True})
    assert args.component_sharing == "ffn=universal"
    with pytest.raises(SharingError, match=r"train.preset: --preset nothing: no such preset"):
        flags.parse({"arch": "transformer_sharing", "preset": "nothing"})


def test_the_same_checkpoint_loads_after_a_preset_has_changed(monkeypatch):
    model = perturb(build("post", preset="shared_ffn"))
    recorded = vars(arguments("post", preset="shared_ffn"))
    args = Namespace(**recorded)
    models.ARCH_CONFIG_REGISTRY["transformer_sharing"](args)
    monkeypatch.setattr("fairseq_sharing.models.presets.PRESETS", {})
    again = build("post", **{name: value for name, value in vars(args).items() if name not in ("arch",)})
    again.load_state_dict(model.state_dict())
    assert again.sharing == model.sharing
