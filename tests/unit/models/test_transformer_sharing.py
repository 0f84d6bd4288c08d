"""The shared Transformer equals fairseq's own with the weights copied into N layers."""

from __future__ import annotations

import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from sharing_cases import BY_NAME, LAYERS
from tiny_models import (
    EMBED,
    VOCABULARY,
    arguments,
    assert_same_translations,
    batch,
    build,
    build_case,
    loss,
    translate,
    vanilla_copy,
)

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.precision import warn_of_slow_bf16
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

SIZES = ("", "_tiny", "_iwslt_de_en", "_wmt_en_de", "_wmt_en_de_big")


def test_output_equals_a_vanilla_model_with_the_weights_copied(case, model, vanilla):
    with torch.no_grad():
        ours, output = model(**batch())[0], vanilla(**batch())[0]
    assert output.shape == (3, 8, VOCABULARY)
    torch.testing.assert_close(ours, output, rtol=0, atol=case.rounding)
    assert output.std() > 0.5, "the outputs are too small for a meaningful test"


def test_every_layer_s_output_equals_that_of_the_vanilla_model(case, model, vanilla):
    inputs = batch()
    with torch.no_grad():
        states = [
            m.encoder(inputs["src_tokens"], inputs["src_lengths"], True)["encoder_states"] for m in (model, vanilla)
        ]
        extras = [m(**inputs)[1] for m in (model, vanilla)]
    assert len(states[0]) == LAYERS + 1
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=case.rounding)
    torch.testing.assert_close(extras[0]["inner_states"], extras[1]["inner_states"], rtol=0, atol=case.rounding)
    torch.testing.assert_close(extras[0]["attn"], extras[1]["attn"], rtol=0, atol=case.rounding)


def test_dropout_draws_the_same_numbers_as_in_the_vanilla_model(case, norm):
    if case.options.get("fast"):
        pytest.skip("fast dropout draws different random numbers")
    ours = build_case(case, norm, dropout=0.3, attention_dropout=0.1, activation_dropout=0.1)
    vanilla = vanilla_copy(case, ours, norm, dropout=0.3, attention_dropout=0.1, activation_dropout=0.1)
    outputs = []
    for model in (ours, vanilla):
        torch.manual_seed(2)
        outputs.append(model.train()(**batch())[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)


def test_translations_and_scores_equal_those_of_the_vanilla_model(model, vanilla):
    assert_same_translations(translate([model], len_penalty=0.6), translate([vanilla], len_penalty=0.6))


OPTIONS = {
    "separate_embeddings": {"share_all_embeddings": False},
    "input_output_embeddings": {"share_all_embeddings": False, "share_decoder_input_output_embed": True},
    "layernorm_embedding": {"layernorm_embedding": True},
    "learned_positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "no_positions": {"no_token_positional_embeddings": True},
    "checkpoint_activations": {"checkpoint_activations": True},
    "gelu_without_scaling": {"activation_fn": "gelu", "no_scale_embedding": True},
    "no_cross_attention": {"no_cross_attention": True},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("strategy", ["cycle_rev", "ffn_scope", "per_stack"])
def test_other_options_behave_as_in_the_vanilla_model(strategy, name, norm):
    case, options = BY_NAME[strategy], OPTIONS[name]
    ours = build_case(case, norm, **options)
    vanilla = vanilla_copy(case, ours, norm, **options)
    losses = [loss(model.train(), batch()) for model in (ours, vanilla)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-5)
    for part in losses:
        part.backward()
    summed: dict[str, torch.Tensor] = {}
    for parameter_name, parameter in vanilla.named_parameters():
        if parameter.grad is not None:
            source = case.source(parameter_name)
            summed[source] = summed.get(source, 0) + parameter.grad
    for parameter_name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, summed.pop(parameter_name), rtol=1e-5, atol=1e-4)
    assert not summed


def test_checkpointed_activations_change_neither_outputs_nor_gradients(case, norm):
    plain, checkpointed = build_case(case, norm), build_case(case, norm, checkpoint_activations=True)
    outputs = []
    for model in (plain, checkpointed):
        outputs.append(model.train()(**batch())[0])
        outputs[-1].softmax(-1)[..., ::3].sum().backward()
    # torch's attention kernels may differ with and without gradients.
    torch.testing.assert_close(*outputs, rtol=0, atol=case.rounding if case.options.get("fast") else 0)
    recomputed = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1.0)
        torch.testing.assert_close(recomputed[name].grad / scale, parameter.grad / scale, rtol=0, atol=case.rounding)


@pytest.mark.parametrize("strategy", ["cycle", "sequence", "attention_scope"])
def test_adaptive_softmax_behaves_as_in_the_vanilla_model(strategy, norm):
    case = BY_NAME[strategy]
    options = {"share_all_embeddings": False, "adaptive_softmax_cutoff": "15,30", "adaptive_softmax_factor": 4}
    ours = build_case(case, norm, **options).eval()
    vanilla = vanilla_copy(case, ours, norm, **options).eval()
    with torch.no_grad():
        log_probs = [m.get_normalized_probs(m(**batch()), log_probs=True) for m in (ours, vanilla)]
    torch.testing.assert_close(*log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_probs[0].exp().sum(-1), torch.ones(3, 8))
    other = build(norm, seed=4, **case.options, **options).eval()
    other.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(other(**batch())[0], ours(**batch())[0])


# --precision bf16


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("option", ["checkpoint_activations", "offload_activations"])
def test_activations_are_recomputed_in_bf16(option, fast):
    dtypes, gradients = [], []
    for recomputed in (False, True):
        model = build("pre", sharing="cycle", unique_layers=3, precision="bf16", fast=fast, **{option: recomputed})
        products = []
        model.encoder.layers[0].fc1.register_forward_hook(
            lambda _module, _inputs, output, products=products: products.append(output.dtype)
        )
        model.train()(**batch())[0].float().logsumexp(-1).sum().backward()
        dtypes.append(products)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert dtypes == [[torch.bfloat16], [torch.bfloat16, torch.bfloat16]]
    # The fast path sums the gradients of a source that several layers project before rounding, not after.
    for name, gradient in gradients[0].items():
        difference = (gradients[1][name] - gradient).norm()
        assert difference <= (0.02 * gradient.norm() + 1e-3 if fast else 1e-6), name


def test_bf16_trains_in_bf16_and_evaluates_in_fp32(case, norm):
    model = build_case(case, norm, precision="bf16")
    fp32 = build_case(case, norm).eval()
    output = model.train()(**batch())[0]
    assert output.dtype == torch.bfloat16
    with torch.no_grad():
        reference = fp32(**batch())[0]
        assert torch.equal(model.eval()(**batch())[0], reference), "evaluation is plain fp32"
    assert (output.float() - reference).abs().max() < 0.5
    output.float().logsumexp(-1).sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_fp32_leaves_the_caller_s_autocast_alone():
    """fairseq's --amp wraps the forward pass in its own autocast."""
    model = build("pre").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**batch())[0].dtype == torch.bfloat16
    assert model(**batch())[0].dtype == torch.float32


# Architectures and how to build them.


@pytest.mark.parametrize("size", SIZES)
def test_architecture_has_the_size_of_fairseq_s(size):
    ours, stock = arguments(arch="a"), arguments(arch="a")
    for args in (ours, stock):
        for name in list(vars(args)):
            delattr(args, name)
    ARCH_CONFIG_REGISTRY[f"transformer_sharing{size}"](ours)
    ARCH_CONFIG_REGISTRY[f"transformer{size}"](stock)
    assert ARCH_MODEL_REGISTRY[f"transformer_sharing{size}"] is TransformerSharingModel
    assert {name: getattr(ours, name) for name in vars(stock)} == vars(stock)


def test_model_of_a_bare_namespace_shares_nothing():
    model = build()
    assert [s.shares for s in model.sharing.values()] == [False, False]
    assert model.encoder.embed_tokens.weight.shape == (VOCABULARY, EMBED)


def test_layer_numbers_of_the_stacks_may_differ():
    model = build(sharing="cycle", unique_layers=2, encoder_layers=5, decoder_layers=3)
    assert model.sharing["encoder"].layer_map == (0, 1, 0, 1, 0)
    assert model.sharing["decoder"].layer_map == (0, 1, 0)


def test_python_list_makes_a_custom_map():
    model = build(sharing="custom", layer_map=[3, 1, 1, 3, 0, 0])
    assert model.sharing["encoder"].layer_map == (0, 1, 1, 0, 2, 2)


def test_bad_options_in_python_are_a_value_error_with_the_command_line_s_text():
    text = r"^--unique-layers must be between 1 and the number of layers \(6\), got 7$"
    with pytest.raises(ValueError, match=text):
        build(sharing="cycle", unique_layers=7)


@pytest.mark.parametrize(
    ("device", "units", "warned"), [("cpu", {}, 1), ("cpu", {"amx_bf16": True}, 0), ("cuda", {}, 0)]
)
def test_slow_bf16_is_reported_once(device, units, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **units}, raising=False)
    warn_of_slow_bf16.cache_clear()
    for _ in range(2):
        warn_of_slow_bf16(device)
    assert [record.message.split(":")[0] for record in caplog.records] == ["--precision bf16"] * warned


def test_half_precision_model_shares_and_computes():
    """--fp16 and --bf16 convert the model, which must stay tied and accurate within their precision."""
    case = BY_NAME["cycle_rev"]
    model = build_case(case, "pre").eval()
    with torch.no_grad():
        expected = model(**batch())[0]
        assert (model.bfloat16()(**batch())[0].float() - expected).abs().max() < 0.5
    names = dict(model.named_parameters(remove_duplicate=False))
    assert names["encoder.layers.5.fc1.weight"] is names["encoder.layers.0.fc1.weight"]


def test_torchscript_is_refused_by_name(model):
    """Also for a part of the model, and for a module that contains it, such as fairseq's search."""
    for module, name in (
        (model, "TransformerSharingModel"),
        (model.decoder, "SharedTransformerDecoder"),
        (torch.nn.Sequential(model), "TransformerSharingModel"),
    ):
        with pytest.raises(SharingError) as error:
            torch.jit.script(module)
        assert str(error.value).startswith(f"torch.jit.script: {name} cannot be compiled; allowed: the stock fairseq")
