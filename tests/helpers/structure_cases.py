"""References and checks of models with other structures: no FFN, factorized embeddings, DeepNorm and B2T."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import torch
from fairseq import checkpoint_utils, models
from sharing_cases import BY_NAME, LAYERS, Case
from tiny_models import (
    EMBED,
    FFN,
    HEADS,
    PAD,
    arguments,
    assert_equal_models,
    assert_same_translations,
    batch,
    build,
    dictionary,
    loss,
    make_trainer,
    perturb,
    save,
    train_step,
    translate,
)

from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.model_files import ModelFiles


def build_lm(norm: str = "post", seed: int = 1, **options):
    """Build a tiny language model from a seed."""
    tiny = {f"decoder_{side}_dim": EMBED for side in ("embed", "input", "output")}
    tiny |= {"decoder_ffn_embed_dim": FFN, "decoder_attention_heads": HEADS, "decoder_layers": LAYERS}
    tiny |= {"dropout": 0.0, "tokens_per_sample": 32, "max_target_positions": 32}
    tiny["decoder_normalize_before"] = norm == "pre"
    torch.manual_seed(seed)
    symbols = dictionary()
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols)
    return models.build_model(Namespace(arch="transformer_lm_sharing", **{**tiny, **options}), task)


def build_roberta(**options):
    """Build a tiny RoBERTa with perturbed weights."""
    args = arguments(arch="roberta_sharing", max_positions=64, attention_dropout=0.0, **options)
    return perturb(models.build_model(args, SimpleNamespace(source_dictionary=dictionary()))).eval()


@torch.no_grad()
def forward_by_hand(model, inputs) -> torch.Tensor:
    """Compute the scores of a model without dropout from its matrices and LayerNorms, sub-layer by sub-layer."""
    cfg = model.cfg
    padding = inputs["src_tokens"].eq(PAD)

    def embed(stack, words):
        table = stack.embed_tokens
        x = table.weight[words]
        if hasattr(table, "projection"):
            x = x @ table.projection.weight.t()
        return (stack.embed_scale * x + stack.embed_positions(words)).transpose(0, 1)

    def run(stack, name, x, memory, mask, hidden):
        for layer in stack.layers:
            bottom, number = x, 0

            def add(x, norm, function, last=False, layer=layer, bottom=bottom):
                nonlocal number
                weight = 1.0
                if cfg.admin != "off":
                    weight = layer.residual_weight[number]
                elif cfg.deepnorm:
                    depths = cfg.encoder.layers, cfg.decoder.layers
                    power = 0.81 * (depths[0] ** 4 * depths[1]) ** (1 / 16)
                    weight = power if name == "encoder" else (3 * depths[1]) ** 0.25
                number += 1
                made = x * weight + function(norm(x) if layer.normalize_before else x)
                if cfg.b2t and last:
                    made = made + bottom
                return made if layer.normalize_before else norm(made)

            def attend(attention, keys, mask, hidden):
                def call(query):
                    source = query if keys is None else keys
                    return attention(
                        query, source, source, key_padding_mask=hidden, attn_mask=mask, need_weights=False
                    )[0]

                return call

            x = add(x, layer.self_attn_layer_norm, attend(layer.self_attn, None, mask, hidden))
            if memory is not None:
                x = add(x, layer.encoder_attn_layer_norm, attend(layer.encoder_attn, memory, None, padding))
            if not getattr(cfg, f"{name}_no_ffn"):
                x = add(x, layer.final_layer_norm, lambda x, of=layer: of.fc2(torch.relu(of.fc1(x))), last=True)
        return x if stack.layer_norm is None else stack.layer_norm(x)

    x = embed(model.encoder, inputs["src_tokens"]) * (~padding).t().unsqueeze(-1)
    memory = run(model.encoder, "encoder", x, None, None, padding)
    words = inputs["prev_output_tokens"]
    x = embed(model.decoder, words)
    future = torch.full((len(x), len(x)), float("-inf")).triu(1)
    x = run(model.decoder, "decoder", x, memory, future, words.eq(PAD)).transpose(0, 1)
    if model.decoder.share_input_output_embed and hasattr(model.decoder.embed_tokens, "projection"):
        x = x @ model.decoder.embed_tokens.projection.weight
    return x @ model.decoder.output_projection.weight.t()


def check_gradients(options: dict, other: dict) -> None:
    """Compare the gradients of a post-norm model with those of the same model with other options."""
    plain, changed = (perturb(build("post", **options, **more)).train() for more in ({}, other))
    for model in (plain, changed):
        loss(model, batch()).backward()
    ours = dict(changed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=2e-5, msg=name)


def check_checkpoint(data_dir, folder: Path, norm: str, options: dict, name: str = "cycle") -> None:
    """Train, save, load, resume and average a model, and translate with it."""
    case = BY_NAME[name]
    trainer = make_trainer(data_dir, case, norm, **options)
    train_step(trainer, seed=3)
    path = save(trainer, folder / "checkpoint1.pt")
    (loaded,), _ = checkpoint_utils.load_model_ensemble([str(path)], strict=True)
    trained = trainer.model.eval()
    assert_equal_models(loaded, trained)
    assert torch.equal(loaded.eval()(**batch())[0], trained(**batch())[0])
    assert_same_translations(translate([loaded]), translate([trained]))

    resumed = make_trainer(data_dir, case, norm, **options)
    resumed.load_checkpoint(str(path))
    for one in (trainer, resumed):
        train_step(one, seed=4)
    assert_equal_models(resumed.model, trainer.model)

    other = save(trainer, folder / "checkpoint2.pt")
    average_checkpoints([path, other], folder / "average.pt")
    (average,), _ = checkpoint_utils.load_model_ensemble([str(folder / "average.pt")], strict=True)
    values = [dict(model.named_parameters()) for model in (loaded, trainer.model, average)]
    for key, value in values[2].items():
        torch.testing.assert_close(value, (values[0][key] + values[1][key]) / 2, rtol=1e-6, atol=1e-7, msg=key)


def export_case(data_dir, folder: Path, case: Case, norm: str, options: dict, change=None, quantization=None):
    """Train a model for one update and export it to CTranslate2."""
    trainer = make_trainer(data_dir, case, norm, **options)
    train_step(trainer)
    if change is not None:
        with torch.no_grad():
            change(trainer.model)
    path = save(trainer, folder / "checkpoint1.pt")
    files = ModelFiles(
        str(path), checkpoints=(path,), dictionaries=data_dir, languages={"source": "en", "target": "de"}
    )
    return export(files, folder / "out", quantization)
