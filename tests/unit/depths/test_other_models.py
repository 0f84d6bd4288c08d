"""Several depths of language models, RoBERTa, MoEUT and compiled layers."""

from __future__ import annotations

import functools
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from moeut_models import build_moeut
from step_by_step import check_step_by_step
from tied_models import checkpoint_of
from tiny_models import EMBED, FFN, PAD, VOCABULARY, batch, build, dictionary, loss, perturb

from fairseq_sharing.depths.checkpoint import take_depth
from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast import compiled_layer

CYCLE = {"sharing": "cycle", "unique_layers": 2}


def build_one_stack(arch: str, **options):
    """Build a language model or a RoBERTa, and return it with its arguments."""
    torch.manual_seed(1)
    stack = "decoder" if "lm" in arch else "encoder"
    sizes = {"embed_dim": EMBED, "ffn_embed_dim": FFN, "attention_heads": 2, "layers": 4}
    args = Namespace(arch=arch, tokens_per_sample=32, dropout=0.0, **{f"{stack}_{k}": v for k, v in sizes.items()})
    args.decoder_input_dim = args.decoder_output_dim = EMBED
    vars(args).update(CYCLE, **options)
    symbols = dictionary()
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols, max_positions=lambda: 32)
    return perturb(models.build_model(args, task)), args


@pytest.mark.parametrize("arch", ["transformer_lm_sharing", "roberta_sharing"])
def test_models_of_one_stack(arch):
    model, args = build_one_stack(arch, depths="2,3,4")
    (stack,) = model.depths.settings[0]
    words = torch.randint(4, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    words[1, -2:] = PAD
    for depth in (2, 3):
        checkpoint, setting = take_depth(checkpoint_of(model, args), DepthRequest(depth))
        assert setting == {stack: depth}
        taken = vars(checkpoint["cfg"]["model"])
        smaller, _ = build_one_stack(**{key: value for key, value in taken.items() if key != "depths"})
        smaller.load_state_dict(checkpoint["model"], strict=True)
        model.eval().use_depth({stack: depth})
        with torch.no_grad():
            assert torch.equal(model(words)[0], smaller.eval()(words)[0])
    model.train().draw_depth(2)
    drawn = model.depths.draw(2, 0)[stack]
    assert [len(one.active) for one in model.stacks.values()] == [drawn]


def test_roberta_refuses_the_aligned_loss():
    with pytest.raises(SharingError, match="--depth-loss aligned: requires a decoder; allowed: sampled"):
        build_one_stack("roberta_sharing", depths="2,4", depth_loss="aligned")


def test_moeut_equals_a_model_of_the_depth():
    model = perturb(build_moeut(**CYCLE, encoder_layers=4, decoder_layers=4, depths="2,3,4")).eval()
    for depth in (2, 3):
        smaller = perturb(build_moeut(**CYCLE, encoder_layers=depth, decoder_layers=depth)).eval()
        smaller.load_state_dict(
            take_depth(checkpoint_of(model, Namespace(**vars(model.args))), DepthRequest(depth))[0]["model"]
        )
        model.use_depth({"encoder": depth, "decoder": depth})
        with torch.no_grad():
            assert torch.equal(model(**batch())[0], smaller(**batch())[0])
        check_step_by_step(model, steps=8)
    with pytest.raises(SharingError, match="--depth-loss aligned is not supported by MoEUT; allowed: sampled"):
        build_moeut(**CYCLE, encoder_layers=4, decoder_layers=4, decoder_depths="2,4", depth_loss="aligned")


def test_compiled_layers_have_one_graph_for_all_depths(monkeypatch):
    made: list[type] = []

    def compiled(kind):
        def count(graph, _inputs):
            made.append(kind)
            return graph.forward

        return torch.compile(kind.forward, dynamic=True, backend=count, fullgraph=True)

    torch._dynamo.reset()
    monkeypatch.setattr(compiled_layer, "compiled", functools.cache(compiled))
    losses = {}
    for compile_ in (False, True):
        model = perturb(build("post", sharing="cycle", unique_layers=3, fast=True, compile=compile_)).train()
        for depth in (6, 3, 4):
            for stack in model.stacks.values():
                stack.limit(tuple(range(depth)), training=True)
            losses[compile_, depth] = loss(model, batch())
    for depth in (6, 3, 4):
        torch.testing.assert_close(losses[True, depth], losses[False, depth])
    assert len(made) == len(set(made)) == 2
    torch._dynamo.reset()
