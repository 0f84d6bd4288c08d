"""The shared language model equals fairseq's with copied weights, in the full pass and step by step."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from sharing_cases import CASES, LAYERS
from tiny_models import EMBED, EOS, FFN, VOCABULARY, dictionary, perturb

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.errors import SharingError

TIED = {
    "adaptive_input": True,
    "adaptive_input_cutoff": "20,40",
    "adaptive_softmax_cutoff": "20,40",
    "adaptive_input_factor": 2,
    "adaptive_softmax_factor": 2,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
OUTPUTS = {"plain": {}, "tied": {"share_decoder_input_output_embed": True}, "adaptive": TIED}


def build(arch="transformer_lm_sharing", seed=1, **options):
    torch.manual_seed(seed)
    tiny = {
        "decoder_embed_dim": EMBED,
        "decoder_input_dim": EMBED,
        "decoder_output_dim": EMBED,
        "decoder_ffn_embed_dim": FFN,
        "decoder_attention_heads": 2,
        "decoder_layers": LAYERS,
        "dropout": 0.0,
        "tokens_per_sample": 32,
        "max_target_positions": 32,
    }
    args = Namespace(arch=arch, **{**tiny, **options})
    symbols = dictionary()
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols)
    return models.build_model(args, task)


def decoder_options(case):
    """Return the case's options for a decoder-only model."""
    scope = [part for part in case.scope if part != "encoder_attn"]
    if not scope:
        return None
    labels = ",".join(map(str, case.decoder))
    fast = case.options.get("fast", False)
    return {"sharing": "custom", "layer_map": labels, "sharing_scope": ",".join(scope), "fast": fast}


SHARED = [pytest.param(decoder_options(case), id=case.name) for case in CASES if decoder_options(case)]


@pytest.fixture(params=SHARED)
def options(request):
    return request.param


def tokens(length=9):
    words = torch.randint(4, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(5))
    words[:, 0] = EOS
    return words


def stock_copy(model, **options):
    stock = build("transformer_lm", seed=9, **options)
    ours = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(ours[name])
    return stock.eval()


@pytest.mark.parametrize("output", OUTPUTS)
def test_output_equals_fairseq_s_language_model(options, output, norm):
    stock_options = {**OUTPUTS[output], "decoder_normalize_before": norm == "pre"}
    model = perturb(build(**options, **stock_options)).eval()
    stock = stock_copy(model, **stock_options)
    torch.testing.assert_close(
        model(tokens(), features_only=True)[0], stock(tokens(), features_only=True)[0], rtol=0, atol=1e-5
    )
    if output != "adaptive":
        torch.testing.assert_close(model(tokens())[0], stock(tokens())[0], rtol=0, atol=1e-5)


def parsed(arch, data_dir, *flags):
    """Build a model as fairseq-train does, from flags."""
    words = [str(data_dir), "--task=language_modeling", f"--arch={arch}", "--tokens-per-sample=32", "--max-tokens=64"]
    cfg = convert_namespace_to_omegaconf(
        fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), [*words, *flags])
    )
    symbols = dictionary()
    with torch.device("meta"):
        return models.build_model(cfg.model, SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols))


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("transformer_lm_sharing", "transformer_lm"),
        ("transformer_lm_sharing_big", "transformer_lm_big"),
        ("transformer_lm_sharing_wiki103", "transformer_lm_wiki103"),
    ],
)
@pytest.mark.parametrize(
    "flags",
    [
        ["--decoder-layers=2", "--adaptive-input-cutoff=20,40", "--adaptive-softmax-cutoff=20,40"],
        [
            *("--decoder-layers=2", "--decoder-embed-dim=64", "--decoder-normalize-before", "--no-decoder-final-norm"),
            *("--adaptive-input-cutoff=20,40", "--adaptive-softmax-cutoff=20,40"),
        ],
    ],
)
def test_defaults_are_those_of_fairseq(ours, stock, flags, data_dir):
    """The same flags give the same options and tensors, so that a checkpoint of fairseq's model loads."""
    ours, stock = parsed(ours, data_dir, *flags), parsed(stock, data_dir, *flags)
    cfgs = ours.cfg, stock.decoder.cfg
    for mine, theirs in (cfgs, *([getattr(cfg, part) for cfg in cfgs] for part in ("decoder", "quant_noise"))):
        names = {field.name for field in fields(theirs)} - {"_name", "encoder", "decoder", "quant_noise"}
        assert {name: getattr(mine, name) for name in names} == {name: getattr(theirs, name) for name in names}
    shapes = [
        {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)} for model in (ours, stock)
    ]
    assert shapes[0] == shapes[1]


def test_a_checkpoint_of_fairseq_s_language_model_loads():
    widths = {"decoder_input_dim": 2 * EMBED, "decoder_output_dim": 3 * EMBED}
    stock = perturb(build("transformer_lm", **widths)).eval()
    model = build(**widths).eval()
    model.load_state_dict(stock.state_dict())
    torch.testing.assert_close(model(tokens())[0], stock(tokens())[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_incremental_decoding_equals_the_full_forward_pass(options):
    decoder = perturb(build(**options)).eval().decoder
    words, cache = tokens(10), {}
    for step in range(1, 11):
        one = decoder(words[:, :step], incremental_state=cache)[0][:, -1]
        whole = decoder(words[:, :step])[0][:, -1]
        torch.testing.assert_close(one, whole, rtol=0, atol=1e-5)
        order = torch.tensor([1, 1, 2]) if step % 3 == 0 else torch.arange(3)
        decoder.reorder_incremental_state_scripting(cache, order)
        words = words[order]


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_saved_model_loads_each_tensor_once(tmp_path, output):
    model = perturb(build(sharing="cycle_rev", unique_layers=3, **OUTPUTS[output]))
    state = model.state_dict()
    storages = [value.data_ptr() for value in state.values() if torch.is_tensor(value) and value.numel() > 3]
    assert len(storages) == len(set(storages))
    save_atomically({"model": state}, tmp_path / "lm.pt")
    loaded = build(sharing="cycle_rev", unique_layers=3, seed=8, **OUTPUTS[output])
    loaded.load_state_dict(load_checkpoint(tmp_path / "lm.pt")["model"])
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    with pytest.raises(SharingError, match="layer map"):
        build(sharing="cycle", unique_layers=3).load_state_dict(state)


def test_the_papers_models_have_121_million_parameters():
    """Vocabulary of WikiText-103, d_model 1024, M = 6: the same size for every N. Source: Takase & Kiyono 2023."""

    class WikiText(type(dictionary())):
        def __len__(self):
            return 267744

    symbols = WikiText()
    sizes = []
    for sharing in (
        {"sharing": "none", "decoder_layers": 6},
        {"sharing": "cycle_rev", "unique_layers": 6, "decoder_layers": 12},
    ):
        args = Namespace(arch="transformer_lm_sharing_wiki103", **sharing)
        models.ARCH_CONFIG_REGISTRY[args.arch](args)
        with torch.device("meta"):
            model = models.build_model(args, SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    attention, feed_forward, norms = 4 * (1024**2 + 1024), 2 * 1024 * 4096 + 4096 + 1024, 2 * 2 * 1024
    bands = [(20000, 1024), (40000, 256), (267744 - 60000, 64)]
    embeddings = sum(size * width for size, width in bands) + 1024 * (1024 + 256 + 64)
    # The adaptive softmax has two additional classes for its tails.
    assert sizes == [6 * (attention + feed_forward + norms) + embeddings + 2 * 1024] * 2
    assert round(sizes[0] / 1e6) == 121


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"sharing": "cycle", "unique_layers": LAYERS + 1}, "--unique-layers"),
        ({"character_embeddings": True}, "--character-embeddings"),
        ({"tie_adaptive_weights": True}, "--adaptive-input"),
        ({**TIED, "adaptive_softmax_cutoff": "30"}, "--adaptive-softmax-cutoff"),
        ({**TIED, "decoder_input_dim": 32}, "--decoder-output-dim, got 32 and 16"),
        ({"sharing": "universal", "admin": "profile"}, "--admin profile is not supported by transformer_lm_sharing"),
    ],
)
def test_bad_options_are_named(options, flag):
    with pytest.raises(SharingError, match=flag):
        build(**options)
