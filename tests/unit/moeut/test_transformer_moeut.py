"""MoEUT's translation model: decoding, sharing, sizes, checkpoints and options."""

from __future__ import annotations

from argparse import Namespace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from fairseq import models, options
from fairseq.models import ARCH_CONFIG_REGISTRY
from moeut_models import MOEUT_CASES, build_moeut, build_moeut_case
from sharing_cases import BY_NAME, LAYERS
from step_by_step import check_step_by_step
from tiny_models import PAD, assert_equal_models, batch, dictionary, loss, perturb

from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.checkpoints.sharing_state import find_aliases
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing, num_unique
from fairseq_sharing.moeut import stacks as moeut_stacks

CYCLE = {"sharing": "cycle", "unique_layers": 3}


@pytest.fixture(params=MOEUT_CASES, ids=lambda case: case.name)
def case(request):
    """Cases of each strategy, a custom map, partial scopes, and different stacks."""
    return request.param


@pytest.fixture
def moeut(case, built):
    """The tiny model of a case with perturbed weights. Do not modify it."""
    if ("moeut", case.name) not in built:
        built["moeut", case.name] = build_moeut_case(case)
    model = built["moeut", case.name].eval()
    model.zero_grad()
    return model


def test_incremental_decoding_equals_the_full_forward_pass(moeut):
    check_step_by_step(moeut)


def test_a_wrong_offset_of_positions_fails_the_same_check(monkeypatch):
    model = build_moeut_case(BY_NAME["cycle"]).eval()
    rotation = moeut_stacks.rotation
    monkeypatch.setattr(moeut_stacks, "rotation", lambda start, *more: rotation(0, *more))
    with pytest.raises(AssertionError, match="differs from the full forward pass by"):
        check_step_by_step(model)


def test_layers_that_share_have_caches_of_their_own():
    decoder = build_moeut_case(BY_NAME["cycle"]).eval().decoder
    cache: dict = {}
    encoded = {"encoder_out": [torch.randn(4, 2, 16)], "encoder_padding_mask": [torch.zeros(2, 4).bool()]}
    decoder(torch.tensor([[2, 7, 8], [2, 9, 5]]), encoder_out=encoded, incremental_state=cache)
    keys = [decoder.get_incremental_state(cache, f"self_attn.{depth}")["keys"] for depth in range(LAYERS)]
    assert not any(torch.equal(keys[0], other) for other in keys[1:])
    names = sorted(name.split(".", 1)[1] for name in cache)
    assert names == [*(f"encoder_attn.{g}" for g in range(3)), *(f"self_attn.{depth}" for depth in range(LAYERS))]


def test_decoding_in_chunks_equals_word_by_word():
    model = build_moeut_case(BY_NAME["cycle_rev"]).eval()
    inputs = batch()
    with torch.no_grad():
        encoded = model.encoder(inputs["src_tokens"])
        words = inputs["prev_output_tokens"][1:2].repeat(3, 1)
        whole, cache, parts, start = model.decoder(words, encoder_out=encoded)[0], {}, [], 0
        for size in (3, 1, 4):
            start += size
            parts.append(model.decoder(words[:, :start], encoder_out=encoded, incremental_state=cache)[0])
    assert [part.size(1) for part in parts] == [3, 1, 4]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_padded_sources_change_nothing(moeut):
    inputs = batch()
    alone = {
        "src_tokens": inputs["src_tokens"][2:, -3:],
        "src_lengths": torch.tensor([3]),
        "prev_output_tokens": inputs["prev_output_tokens"][2:, :4],
    }
    assert (inputs["src_tokens"][2, :-3] == PAD).all()
    torch.testing.assert_close(moeut(**inputs)[0][2:, :4], moeut(**alone)[0], rtol=0, atol=1e-5)


def test_the_source_side_of_cross_attention_is_made_once_a_parameter_set(case, moeut, monkeypatch):
    made = []
    kept = moeut_stacks.PeriLayer.attend_to
    monkeypatch.setattr(moeut_stacks.PeriLayer, "attend_to", lambda self, *args: made.append(self) or kept(self, *args))
    usage = moeut(**batch(), return_usage=True)[1]["usage"]["decoder"]
    sets = num_unique(case.decoder) if case.ties("encoder_attn.") else LAYERS
    assert len(made) == sets
    assert sum(one.kind == "encoder_attn.value" for used in usage for one in used) == sets
    assert sum(one.kind == "encoder_attn.output" for used in usage for one in used) == LAYERS


def scoped(case, name):
    """Return whether the case ties a parameter of MoEUT's layer."""
    return case.ties(name.replace("ffn.", "fc1."))


def test_layers_share_parameters_by_the_map(case, moeut):
    for stack in ("encoder", "decoder"):
        layers = getattr(moeut, stack).layers
        for depth, layer in enumerate(layers):
            owner = dict(layers[case.owner(stack, depth)].named_parameters())
            for name, parameter in layer.named_parameters():
                assert (parameter is owner[name]) == (scoped(case, name) or case.owner(stack, depth) == depth), name


@torch.no_grad()
def test_dropout_is_retained_in_inference_on_request():
    model = build_moeut(dropout=0.5).eval()
    assert torch.equal(model(**batch())[0], model(**batch())[0])
    model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=["PeriLayer"])
    assert not torch.equal(model(**batch())[0], model(**batch())[0])


def test_the_number_of_parameters_does_not_depend_on_the_depth():
    sizes = {
        sum(p.numel() for p in build_moeut(**CYCLE, encoder_layers=n, decoder_layers=n).parameters()) for n in (3, 6, 9)
    }
    assert len(sizes) == 1


def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses():
    shared = build_moeut_case(BY_NAME["cycle"])
    unshared = build_moeut(sharing="none")
    ours = dict(shared.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in unshared.named_parameters():
            parameter.copy_(ours[name])
    for model in (shared, unshared):
        loss(model.eval(), batch()).backward()
    sums: dict = {}
    for name, parameter in unshared.named_parameters():
        source = BY_NAME["cycle"].source(name)
        sums[source] = sums.get(source, 0) + parameter.grad
    for name, parameter in shared.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_changing_a_set_changes_all_layers_that_use_it():
    model = build_moeut_case(BY_NAME["cycle"]).eval()
    before = model.encoder(batch()["src_tokens"], return_all_hiddens=True)["encoder_states"]
    model.encoder.layers[1].ffn.up.add_(1.0)
    after = model.encoder(batch()["src_tokens"], return_all_hiddens=True)["encoder_states"]
    steps = [[b - a for a, b in pairwise(states)] for states in (before, after)]
    first = [(one - other).abs().max() > 1e-3 for one, other in zip(*steps, strict=True)]
    assert first[:2] == [False, True]
    assert all(first[2:]), "later layers read a different stream"


def test_a_changed_map_gives_the_same_output_and_layers_of_their_own():
    """Share, then unshare, as the schedules do."""
    model = build_moeut_case(BY_NAME["cycle"]).eval()
    with torch.no_grad():
        before = model(**batch())[0]
        for stack in ("encoder", "decoder"):
            getattr(model, stack).change_map(StackSharing(tuple(range(LAYERS))))
        torch.testing.assert_close(model(**batch())[0], before, rtol=0, atol=1e-6)
    usage = model(**batch(), return_usage=True)[1]["usage"]
    assert sum(one.kind == "encoder_attn.value" for used in usage["decoder"] for one in used) == LAYERS
    check_step_by_step(model, steps=8)


def test_a_saved_model_loads_each_tensor_once(case, moeut, tmp_path):
    state = moeut.state_dict()
    storages = [value.data_ptr() for value in state.values() if torch.is_tensor(value) and value.numel() > 3]
    assert len(storages) == len(set(storages))
    paths = [tmp_path / "1.pt", tmp_path / "2.pt"]
    for path in paths:
        save_atomically({"model": state}, path)
    average_checkpoints(paths, tmp_path / "average.pt")
    loaded = build_moeut(seed=8, **{"sharing": "none", **case.options})
    loaded.load_state_dict(load_checkpoint(tmp_path / "average.pt")["model"])
    assert_equal_models(moeut, loaded)


def test_a_bank_of_another_size_names_the_flag():
    state = build_moeut(**CYCLE).state_dict()
    with pytest.raises(SharingError, match="--ffn-experts"):
        build_moeut(**CYCLE, decoder_ffn_experts=9).load_state_dict(state)
    with pytest.raises(SharingError, match="--attention-experts"):
        build_moeut(**CYCLE, attention_experts=3).load_state_dict(state)


def test_it_cannot_be_written_for_stock_fairseq():
    with pytest.raises(SharingError, match="--materialize requires a transformer_sharing model, got transformer_moeut"):
        materialize({"model": {}, "cfg": {"model": {"arch": "transformer_moeut"}}})


# Dense Transformer: d, ffn, layers -> parameters of encoder and decoder; MoEUT sizes must match them.
PRESETS = {
    "transformer_moeut": ((512, 2048, 6), (18_914_304, 25_224_192), (18_959_360, 25_283_584)),
    "transformer_moeut_iwslt_de_en": ((512, 1024, 6), (12_616_704, 18_926_592), (12_643_328, 18_967_552)),
    "transformer_moeut_small": ((256, 1024, 4), (3_159_040, 4_213_760), (3_166_208, 4_225_536)),
    "transformer_moeut_tiny": ((128, 256, 4), (529_920, 795_136), (532_480, 800_000)),
}


def build_named(arch, **changes):
    args = Namespace(arch=arch, share_all_embeddings=True, **changes)
    ARCH_CONFIG_REGISTRY[arch](args)
    symbols = dictionary()
    with torch.device("meta"):
        return models.build_model(args, SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols))


def stack_sizes(model):
    embedding = model.encoder.embed_tokens.weight.numel()
    encoder = sum(p.numel() for p in model.encoder.parameters()) - embedding
    return encoder, sum(p.numel() for p in model.parameters()) - embedding - encoder


@pytest.mark.parametrize("arch", PRESETS)
def test_a_size_has_the_parameters_of_its_dense_transformer(arch):
    (d, ffn, layers), dense, ours = PRESETS[arch]
    sizes = {f"{stack}_layers": layers for stack in ("encoder", "decoder")}
    vanilla = build_named("transformer_sharing", encoder_embed_dim=d, encoder_ffn_embed_dim=ffn, **sizes)
    assert stack_sizes(vanilla) == dense
    model = build_named(arch)
    assert stack_sizes(model) == ours
    assert all(abs(one / other - 1) < 0.01 for one, other in zip(ours, dense, strict=True))
    if arch.endswith("tiny"):
        from fairseq_sharing.description.counts import count_macs

        assert model.count_macs(25) / count_macs(vanilla, 25) == pytest.approx(1, abs=0.015)


BAD = [
    ({"ffn_top_k": 9}, "--ffn-top-k must be between 1 and --encoder-ffn-experts (5), got 9; nearest: 5"),
    ({"attention_top_k": 0}, "--attention-top-k must be between 1 and --attention-experts (4), got 0; nearest: 1"),
    ({"rotary_dim": 5}, "--rotary-dim must be even and between 0 and --head-dim (8), got 5; nearest: 4"),
    ({"rotary_dim": 12}, "--rotary-dim must be even and between 0 and --head-dim (8), got 12; nearest: 8"),
    ({"decoder_ffn_experts": 0}, "--decoder-ffn-experts must be at least 1, got 0; nearest: 1"),
    ({"expert_dim": 0}, "--expert-dim must be at least 1, got 0; nearest: 1"),
    ({"expert_dropout": 1.0}, "--expert-dropout must be at least 0 and below 1, got 1.0; nearest: 0.9"),
    (
        {"decoder_embed_dim": 32, "share_all_embeddings": False},
        "--decoder-embed-dim must equal --encoder-embed-dim (16) for cross-attention, got 32; nearest: 16",
    ),
    ({"admin": "profile"}, "--admin profile requires post-norm layers; allowed: off"),
    (
        {"activation_fn": "gelu"},
        "--activation-fn gelu cannot be combined with this model: the residual stream has no fixed scale, and only "
        "ReLU preserves that; allowed: relu",
    ),
    (
        {"encoder_learned_pos": True},
        "--encoder-learned-pos True cannot be combined with this model: positions are rotary; allowed: leave it out",
    ),
    ({"unique_layers": 7, "sharing": "cycle"}, "--unique-layers must be between 1 and the number of layers (6), got 7"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[next(iter(change)) for change, _ in BAD])
def test_bad_options_end_in_a_line_that_names_the_nearest_value(change, message):
    with pytest.raises(SharingError) as caught:
        build_moeut(**change)
    assert str(caught.value) == message


def test_flags_are_read_and_sizes_filled_in():
    parser = options.get_training_parser()
    words = ["data", "--task=translation", "--arch=transformer_moeut_small", "--ffn-top-k=3", "--sharing=sandwich"]
    args = options.parse_args_and_arch(parser, words)
    assert (args.ffn_top_k, args.encoder_ffn_experts, args.head_dim, args.rotary_dim) == (3, 19, 64, 32)
    assert (args.sharing, args.unique_layers, args.expert_backend) == ("sandwich", None, "auto")


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"checkpoint_activations": True}], ids=str)
def test_gradients_are_those_of_fp32_without_recomputation(change):
    gradients = []
    for changes in ({}, change):
        model = build_moeut(**CYCLE, **changes).train()
        loss(model, batch()).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < (0.1 if "precision" in change else 1e-5)
    if "precision" in change:
        assert model(**batch())[0].dtype == torch.bfloat16
        assert model.eval()(**batch())[0].dtype == torch.float32


def test_a_criterion_that_does_not_balance_experts_is_pointed_out(caplog):
    build_moeut(**CYCLE, criterion="moe_cross_entropy")
    assert not caplog.records
    build_moeut(**CYCLE, criterion="cross_entropy")
    assert "--criterion cross_entropy does not balance the usage of experts" in caplog.text


def test_half_precision_keeps_what_is_shared():
    model = perturb(build_moeut(**CYCLE)).eval()
    expected = model(**batch())[0]
    ties = find_aliases(model)
    assert (model.bfloat16()(**batch())[0].float() - expected).abs().mean() < 0.5
    assert find_aliases(model) == ties


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_alignments_are_refused_by_name(kind):
    model = build_moeut_case(BY_NAME["cycle"])
    with pytest.raises(SharingError) as error:
        model.make_generation_fast_(need_attn=kind)
    assert str(error.value) == (
        f"--print-alignment {kind}: MoEUT's attention returns no weights; allowed: leave it out"
    )
    model.make_generation_fast_(need_attn=None)
