"""The sharing flags: parsing by fairseq, and options that they cannot be combined with."""

from __future__ import annotations

from argparse import Namespace

import pytest
from fairseq import options
from fairseq.models.transformer import TransformerConfig
from sharing_cases import LAYERS
from tiny_models import arguments

from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.sharing_options import set_defaults, stack_sharing, validate

SHARED = {"sharing": "cycle", "unique_layers": 3}


def parse(*flags: str) -> Namespace:
    """Parse flags as fairseq-train does."""
    parser = options.get_training_parser()
    words = ["data", "--task=translation", "--arch=transformer_sharing", *flags]
    return options.parse_args_and_arch(parser, words)


def test_flags_of_both_stacks_and_of_one_are_read():
    args = parse(
        "--encoder-layers=6",
        "--decoder-layers=4",
        "--sharing=cycle_rev",
        "--unique-layers=3",
        "--decoder-sharing=custom",
        "--decoder-layer-map=0,1,1,0",
        "--encoder-sharing-scope=self_attn,ffn",
    )
    assert (args.sharing, args.unique_layers, args.layer_map) == ("cycle_rev", 3, None)
    sharing = validate(args)
    assert sharing["encoder"].layer_map == (0, 1, 2, 2, 1, 0)
    assert sharing["encoder"].scope == ("self_attn", "ffn")
    assert sharing["decoder"].layer_map == (0, 1, 1, 0)
    assert sharing["decoder"].scope == ("layer",)


def test_without_flags_nothing_is_shared():
    args = parse()
    assert args.precision == "fp32"
    assert not any(sharing.shares for sharing in validate(args).values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sharing=cycle"], "--unique-layers: missing"),
        (["--sharing=cycle", "--unique-layers=0"], "--unique-layers must be between 1 and "),
        (["--sharing=cycles"], "--sharing must be one of none, universal, "),
        (["--sharing=universal", "--sharing-scope=embedding"], "--sharing-scope must be layer, or some of "),
        (["--decoder-sharing=cycle", "--decoder-unique-layers=9"], "--decoder-unique-layers must be between 1 and "),
    ],
)
def test_bad_flags_stop_the_parser(flags, message):
    with pytest.raises(SharingError) as caught:
        parse(*flags)
    assert str(caught.value).startswith(message)


def test_options_of_one_stack_survive_fairseq_s_own_configuration():
    """TransformerConfig stores every encoder_x and decoder_x in nested configurations."""
    args = arguments(encoder_sharing="universal", decoder_sharing="cycle_rev", decoder_unique_layers=3)
    args.decoder_sharing_scope = "ffn"
    build_args = Namespace(**vars(args))
    set_defaults(build_args)
    cfg = TransformerConfig.from_namespace(build_args)
    for source in (build_args, cfg):
        assert stack_sharing(source, "encoder").layer_map == (0,) * LAYERS
        assert stack_sharing(source, "decoder").layer_map == (0, 1, 2, 2, 1, 0)
        assert stack_sharing(source, "decoder").scope == ("ffn",)
        assert stack_sharing(source, "encoder").scope == ("layer",)


def test_defaults_fill_in_what_is_missing_and_nothing_else():
    args = Namespace(sharing="cycle", unique_layers=2)
    set_defaults(args)
    assert (args.sharing, args.unique_layers, args.precision) == ("cycle", 2, "fp32")
    assert args.decoder_layer_map is None


ALONE = [
    ("encoder_layerdrop", 0.1, "--encoder-layerdrop 0.1 cannot be combined with this model: shared layers"),
    ("decoder_layerdrop", 0.2, "--decoder-layerdrop 0.2 cannot be combined with this model: shared layers"),
    ("encoder_layers_to_keep", "0,1", "--encoder-layers-to-keep 0,1 cannot be combined with this model: shared"),
    ("quant_noise_pq", 0.05, "--quant-noise-pq 0.05 cannot be combined with this model: noise would be"),
    ("quant_noise_scalar", 0.5, "--quant-noise-scalar 0.5 cannot be combined with this model: noise would"),
    ("base_layers", 1, "--base-layers 1 cannot be combined with this model: expert layers"),
    ("ddp_backend", "fully_sharded", "--ddp-backend fully_sharded cannot shard layers that share parameters; "),
]


@pytest.mark.parametrize(("name", "value", "message"), ALONE, ids=[row[0] for row in ALONE])
def test_what_cannot_be_combined_with_sharing_is_refused_by_name(name, value, message):
    with pytest.raises(SharingError) as caught:
        validate(arguments(**SHARED, **{name: value}))
    assert str(caught.value).startswith(message)
    assert "allowed" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [row[:2] for row in ALONE if row[0] != "encoder_layers_to_keep"])
def test_the_same_is_allowed_without_sharing(name, value):
    assert not validate(arguments(**{name: value}))["encoder"].shares


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("find_unused_parameters", True, "--find-unused-parameters True cannot be combined with this model: the fused"),
        ("ddp_backend", "fully_sharded", "--ddp-backend fully_sharded hides the output projection from the fused loss"),
    ],
)
def test_what_hides_the_output_projection_is_refused_with_the_fused_loss(name, value, message):
    validate(arguments(criterion="label_smoothed_cross_entropy", **{name: value}))
    with pytest.raises(SharingError) as caught:
        validate(arguments(criterion="fused_label_smoothed_cross_entropy", **{name: value}))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_only_the_stack_that_shares_refuses_layerdrop():
    validate(arguments(decoder_sharing="universal", encoder_layerdrop=0.1))
    with pytest.raises(SharingError, match=r"^--decoder-layerdrop 0\.1 "):
        validate(arguments(decoder_sharing="universal", decoder_layerdrop=0.1))


def test_values_that_turn_an_option_off_are_allowed():
    off = {"encoder_layerdrop": 0.0, "quant_noise_pq": 0, "ddp_backend": "legacy_ddp"}
    assert validate(arguments(**SHARED, **off))["encoder"].shares


@pytest.mark.parametrize("flag", ["fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16"])
def test_bf16_precision_refuses_fairseq_s_own_low_precision(flag):
    with pytest.raises(SharingError) as caught:
        validate(arguments(precision="bf16", **{flag: True}))
    assert str(caught.value) == (
        f"--{flag.replace('_', '-')} True cannot be combined with this model: --precision bf16 keeps fp32 weights and "
        "casts by itself; allowed: leave it out"
    )
    validate(arguments(precision="fp32", **{flag: True}))
