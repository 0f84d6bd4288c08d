"""MoEUT as a language model: the paper's exact sizes, decoding, and the dense baseline."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from moeut_models import MOEUT_CASES, build_moeut, decoder_options
from tiny_models import EMBED, EOS, VOCABULARY, assert_equal_models, dictionary, perturb
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sharing.checkpoints.sharing_state import recorded_sharing
from fairseq_sharing.errors import SharingError

LM = "transformer_lm_moeut"
# Parameters, and 10^9 multiply-accumulate operations for 1,024 tokens without the output projection.
# Source: totals of the instantiated official models and of the paper's baselines, vocabulary 8,000.
PAPER = {
    "44m": (44_345_792, 46.51),
    "126m": (125_669_696, 95.32),
    "244m": (243_326_784, 163.43),
    "319m": (318_107_456, 216.68),
    "728m": (727_424_320, 499.27),
    "1b": (1_040_319_296, 706.94),
    "dense_44m": (44_544_264, 52.54),
    "dense_126m": (125_654_336, 141.73),
    "dense_244m": (243_568_700, 271.11),
    "dense_319m": (319_293_584, 361.48),
    "dense_728m": (728_694_080, 821.41),
    "dense_1b": (1_044_300_608, 1159.64),
}


class Vocabulary8000(type(dictionary())):
    def __len__(self):
        return 8000


def build_named(arch, **changes):
    symbols = Vocabulary8000()
    args = Namespace(arch=arch, **changes)
    models.ARCH_CONFIG_REGISTRY[arch](args)
    with torch.device("meta"):
        return models.build_model(args, SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols))


@pytest.mark.parametrize("size", PAPER)
def test_the_paper_s_models_have_its_parameters_and_operations(size):
    model = build_named(f"{LM}_{size}")
    parameters, macs = PAPER[size]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    head = 1024 * model.decoder.embed_dim * 8000
    assert round((model.count_macs(1024) - head) / 1e9, 2) == macs


def test_the_group_size_ablation_has_equal_totals():
    """Csordas et al. 2024, ablation at 244M: G, feed-forward experts, attention experts."""
    for unique, ffn, attention in ((1, 779, 20), (2, 387, 10), (3, 260, 6), (6, 128, 3), (9, 84, 2)):
        model = build_named(f"{LM}_244m", unique_layers=unique, ffn_experts=ffn, attention_experts=attention)
        assert 243.3 <= round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) <= 243.8
    control = build_named(f"{LM}_244m", sharing="none", ffn_experts=40, attention_experts=1, attention_top_k=1)
    assert round(sum(parameter.numel() for parameter in control.parameters()) / 1e6, 1) == 243.8


@pytest.mark.parametrize("dense", [False, True])
def test_operations_are_those_that_are_executed(dense):
    """Compare with torch's count. It misses attention on CPU, which is added here."""
    if dense:
        model = build_moeut(f"{LM}_dense_44m", **dict.fromkeys(_EXPERTS), decoder_ffn_embed_dim=24)
    else:
        model = build_moeut(LM, sharing="cycle", unique_layers=2, expert_backend="loop")
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randint(4, VOCABULARY, (1, 9)))
    attention = 6 * 2 * 2 * 8 * 9 * 9  # layers x (scores, weighted sums) x heads x head_dim x T x T
    assert counter.get_total_flops() // 2 + attention == model.count_macs(9)


_EXPERTS = ("attention_experts", "attention_top_k", "ffn_experts", "ffn_top_k", "expert_dim")


def test_active_parameters_are_those_of_chosen_experts():
    model = build_named(f"{LM}_244m")
    banks = model.expert_banks()
    assert [(bank["name"], bank["experts"], bank["active"]) for bank in banks[:3]] == [
        ("decoder.layers.0.self_attn.value", 40, 8),
        ("decoder.layers.0.self_attn.output", 40, 8),
        ("decoder.layers.0.ffn", 387, 16),
    ]
    assert len(banks) == 6, "each bank once, regardless of how often it is applied"
    inactive = 2 * (2 * 32 * 1024 * 128 + 371 * 2 * 1024 * 128)
    assert model.active_parameters() == 243_326_784 - inactive


SHARED = [pytest.param(decoder_options(case), id=case.name) for case in MOEUT_CASES if decoder_options(case)]


@torch.no_grad()
@pytest.mark.parametrize("options", [*SHARED, pytest.param({"arch": f"{LM}_dense_44m"}, id="dense")])
def test_incremental_decoding_equals_the_full_forward_pass(options):
    options = {"arch": LM, **options}
    if "dense" in options["arch"]:
        options.update(dict.fromkeys(_EXPERTS), decoder_ffn_embed_dim=24)
    decoder = perturb(build_moeut(**options)).eval().decoder
    words, cache = torch.randint(4, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(5)), {}
    words[:, 0] = EOS
    words[1, :3] = decoder.padding_idx  # on the left, as in prompts of different lengths
    for step in range(1, 11):
        one = decoder(words[:, :step], incremental_state=cache)[0][:, -1]
        whole = decoder(words[:, :step])[0][:, -1]
        torch.testing.assert_close(one, whole, rtol=0, atol=1e-5)
        order = torch.tensor([1, 1, 2]) if step % 4 == 0 else torch.arange(3)
        decoder.reorder_incremental_state_scripting(cache, order)
        words = words[order]


def test_a_saved_model_loads():
    model = perturb(build_moeut(LM, sharing="cycle_rev", unique_layers=3))
    state = model.state_dict()
    assert not any(".layers.3." in name for name in state)
    loaded = build_moeut(LM, sharing="cycle_rev", unique_layers=3, seed=8)
    loaded.load_state_dict(state)
    assert_equal_models(model, loaded)
    assert recorded_sharing(state)["decoder"].layer_map == (0, 1, 2, 2, 1, 0)


def test_the_output_is_untied_with_a_bias_unless_it_is_tied():
    untied = build_named(f"{LM}_44m").decoder.output_projection
    assert untied.bias.shape == (8000,)
    tied = build_moeut(LM).decoder
    assert tied.output_projection.weight is tied.embed_tokens.weight
    assert tied.output_projection.bias is None
    assert tied.embed_scale == 1.0
    assert tied.embed_tokens.weight.std().item() == pytest.approx(EMBED**-0.5, rel=0.1)


def test_a_dense_baseline_refuses_experts():
    with pytest.raises(SharingError, match="--ffn-experts 6 cannot be combined with this model: its layers are dense"):
        build_moeut(f"{LM}_dense_44m", **{**dict.fromkeys(_EXPERTS), "ffn_experts": 6})
    with pytest.raises(SharingError, match=r"--rotary-dim must be even .* got 3; nearest: 2"):
        build_moeut(f"{LM}_dense_44m", **dict.fromkeys(_EXPERTS), rotary_dim=3)
