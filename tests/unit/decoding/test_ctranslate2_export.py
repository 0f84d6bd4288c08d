"""Export models to CTranslate2: stored tensors, scores and rejected models."""

from __future__ import annotations

import json
import math
import struct
from contextlib import contextmanager
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from ctranslate2.converters import FairseqConverter
from ctranslate2.specs import transformer_spec
from sharing_cases import BY_NAME
from tiny_models import EMBED, make_trainer, save, train_step

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.decoding import ctranslate2_export
from fairseq_sharing.decoding.ctranslate2_engine import CTranslate2Engine
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.decoding.reference_scores import ReferenceScores
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256

POSITIONS = 64 * EMBED  # sinusoids, stored once for both stacks
LIMITS = {"source": 63, "target": 63}


def stored_floats(model: Path) -> int:
    """Count the values in the tensors of a CTranslate2 file, without scalars."""
    with model.open("rb") as file:

        def number(code: str) -> int:
            return struct.unpack(code, file.read(struct.calcsize(code)))[0]

        def skip_string() -> None:
            file.read(number("H"))

        number("I")
        skip_string()
        number("I")
        floats = 0
        for _ in range(number("I")):
            skip_string()
            dimensions = [number("I") for _ in range(number("B"))]
            number("B")
            file.read(number("I"))
            floats += math.prod(dimensions) if dimensions else 0
        return floats


def files_of(path, data_dir) -> ModelFiles:
    languages = {"source": "en", "target": "de"}
    return ModelFiles(str(path), checkpoints=(path,), dictionaries=data_dir, languages=languages)


@pytest.fixture
def checkpoint(data_dir, tmp_path):
    """Return a function that writes the checkpoint of a case after one update."""

    def write(name: str = "cycle", norm: str = "post", change=None, **options) -> ModelFiles:
        trainer = make_trainer(data_dir, BY_NAME[name], norm, **options)
        train_step(trainer)
        if change is not None:
            with torch.no_grad():
                change(trainer.model)
        return files_of(save(trainer, tmp_path / "checkpoint1.pt"), data_dir)

    return write


@contextmanager
def stock_reader():
    """Read files like a process without this package, which allows Namespace in them."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


@pytest.mark.parametrize(("name", "norm"), [("cycle_rev", "pre"), ("custom", "post")])
def test_materialized_file_is_read_by_the_converter_of_ctranslate2(name, norm, checkpoint, data_dir, tmp_path):
    files = checkpoint(name, norm)
    save_atomically(materialize(load_checkpoint(files.checkpoints[0])), tmp_path / "stock.pt")
    with stock_reader():
        converted = FairseqConverter(str(tmp_path / "stock.pt"), str(data_dir)).convert(str(tmp_path / "converted"))
    (model,), task, _ = ctranslate2_export.load_models(files)
    with torch.no_grad():
        reference = ReferenceScores.of(model, task, name)
    assert ctranslate2_export.compare(ctranslate2, reference, Path(converted)).largest < 2e-5


def test_each_tensor_is_stored_once_and_scores_are_fairseqs(trained, case, norm, data_dir, tmp_path):
    exported = export(files_of(trained.path, data_dir), tmp_path / "out")
    assert exported.difference.largest < 2e-5
    used, stored = exported.tensors
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    assert stored_floats(exported.path / "model.bin") == parameters + POSITIONS
    # One alias of the positions and two of the embeddings in a model that shares no layer.
    assert (used - stored > 3) == case.shares


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_normalize_before": True},
        {"decoder_normalize_before": True, "no_decoder_final_norm": True},
        {"decoder_attention_heads": 4, "decoder_ffn_embed_dim": 24, "layernorm_embedding": True},
        {"encoder_learned_pos": True, "decoder_learned_pos": True, "no_scale_embedding": True},
        {"share_all_embeddings": False, "decoder_embed_dim": 24, "decoder_input_dim": 24, "decoder_output_dim": 24},
        {"share_all_embeddings": False, "activation_fn": "gelu"},
    ],
    ids=lambda options: ",".join(options),
)
def test_stacks_of_every_build(checkpoint, options, tmp_path):
    # Without a final norm, the outputs and their rounding errors are large.
    assert export(checkpoint(**options), tmp_path / "out").difference.largest < 1e-4


@pytest.mark.parametrize("name", ["none", "sequence"])
@pytest.mark.parametrize("layernorm_embedding", [False, True])
def test_admin_folds(checkpoint, name, layernorm_embedding, tmp_path):
    """Use perturbed residual weights: all different, and none is 1."""
    files = checkpoint(name, admin="closed_form", layernorm_embedding=layernorm_embedding)
    exported = export(files, tmp_path / "out")
    assert exported.difference.largest < 1e-4
    # The first matrices of 2 (encoder) and 3 (decoder) sub-layers, once for each layer that does not own them.
    assert exported.depth_tensors == (0 if name == "none" else 3 * (2 + 3))


def test_admin_that_does_not_fold_is_refused(checkpoint, tmp_path):
    def change(model):
        model.decoder.layers[1].residual_weight[0, 3] = 0.0

    with pytest.raises(SharingError, match=r"decoder layer 2: Admin's residual weight 0 is too small .* --engine"):
        export(checkpoint(change=change, admin="closed_form"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_ctranslate2_does_not_compute_is_refused(checkpoint, tmp_path, monkeypatch):
    """Use residual weights that are not folded; the failed export leaves no files."""
    files = checkpoint(admin="closed_form")
    monkeypatch.setattr(ctranslate2_export, "fold_admin", lambda *_: 0)
    with pytest.raises(SharingError, match=r"differ from fairseq's by .* --engine fairseq"):
        export(files, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint1.pt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_token_positional_embeddings": True}, "does not support --no-token-positional-embeddings True"),
        ({"activation_fn": "tanh"}, "does not support --activation-fn tanh; allowed: gelu"),
        ({"share_all_embeddings": False, "decoder_output_dim": 8}, "does not support --decoder-output-dim 8"),
        ({"act": "both"}, "does not support --act both"),
        ({"depth_signal": "learned"}, "does not support --depth-signal learned"),
        ({"position_per_depth": True}, "does not support --position-per-depth True"),
    ],
)
def test_unsupported_options_are_named(checkpoint, options, message, tmp_path):
    with pytest.raises(SharingError, match=message):
        export(checkpoint(**options), tmp_path / "out")


def test_other_layers_are_refused(checkpoint, tmp_path, monkeypatch):
    files = checkpoint()
    load = ctranslate2_export.load_models

    def loaded(files):
        models, *more = load(files)
        models[0].encoder.layers[0] = torch.nn.Identity()
        return models, *more

    monkeypatch.setattr(ctranslate2_export, "load_models", loaded)
    with pytest.raises(SharingError, match="does not support Identity; allowed: transformer and transformer_sharing"):
        export(files, tmp_path / "out")


def test_a_folder_with_other_content_is_kept(checkpoint, tmp_path):
    files, folder = checkpoint(), tmp_path / "out"
    folder.mkdir()
    export(files, folder)
    export(files, folder)
    (folder / "model.bin").rename(folder / "thesis.txt")
    with pytest.raises(SharingError, match="out: exists and is not an exported model; give another folder"):
        export(files, folder)
    assert (folder / "thesis.txt").exists()


def test_quantized_weights_are_smaller_and_translate_similarly(checkpoint, tmp_path):
    files = checkpoint("sequence")
    sizes = {kind: export(files, tmp_path / str(kind), kind).size for kind in (None, "float16", "int8")}
    assert sizes[None] > 1.6 * sizes["float16"] > 1.6 * sizes["int8"]
    sentences, search = [["w5", "w6", "w9"], ["w7"]], Search(beam=3, nbest=3, max_len_b=8)
    found = [
        dict(CTranslate2Engine(tmp_path / str(kind), LIMITS, "float32", 1, "cpu").translate(sentences, search))
        for kind in (None, "int8")
    ]
    for number in range(len(sentences)):
        scores = [[hypothesis.score for hypothesis in engine[number]] for engine in found]
        np.testing.assert_allclose(*scores, atol=0.05)


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        (None, 0, 2e-5),
        ("float16", 1e-5, 0.01),
        ("bfloat16", 1e-4, 0.1),
        ("int8", 1e-4, 0.2),
        ("int8_bfloat16", 1e-4, 0.2),
    ],
)
def test_the_difference_is_that_of_the_written_weights(checkpoint, kind, least, most, tmp_path):
    files = checkpoint("sequence")
    exported = export(files, tmp_path / "out", kind)
    assert least <= exported.difference.mean <= exported.difference.largest <= most
    # Again, from the files only.
    (model,), task, _ = ctranslate2_export.load_models(files)
    with torch.no_grad():
        reference = ReferenceScores.of(model, task, "again")
    assert ctranslate2_export.compare(ctranslate2, reference, exported.path) == exported.difference


def test_a_quantized_model_that_computes_something_else_is_refused(checkpoint, tmp_path, monkeypatch):
    files = checkpoint()
    quantize = transformer_spec.TransformerSpec._quantize

    def spoil(spec, kind):
        quantize(spec, kind)
        for name, variable in spec.variables().items():
            if kind and name.endswith("ffn/layer_norm/gamma") and not isinstance(variable, str):
                variable.array = np.full_like(variable.numpy(), 30)

    monkeypatch.setattr(transformer_spec.TransformerSpec, "_quantize", spoil)
    with pytest.raises(
        SharingError, match=r"with --quantization int8 the log-probabilities differ .* on average.* use another"
    ):
        export(files, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_log_probabilities_that_are_not_finite_are_refused(checkpoint, kind, value, tmp_path, monkeypatch):
    """Test the log-probabilities of the written model; the checked weights are finite."""
    files, convert = checkpoint(), ctranslate2_export.convert

    def spoil(*args):
        spec, depth_tensors = convert(*args)
        bias = spec.decoder.layer[0].ffn.linear_1.bias
        bias.array = np.full_like(bias.numpy(), value)  # the model's own bias is unchanged
        return spec, depth_tensors

    monkeypatch.setattr(ctranslate2_export, "convert", spoil)
    with pytest.raises(SharingError, match="CTranslate2 computes log-probabilities that are NaN or infinite"):
        export(files, tmp_path / "out", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint1.pt"]


def test_manifest_has_everything_that_translation_requires(checkpoint, tmp_path):
    export(checkpoint("sandwich"), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["max_tokens"] == LIMITS
    assert manifest["layer_map"]["encoder"] == list(BY_NAME["sandwich"].encoder)
    assert (manifest["source_lang"], manifest["target_lang"]) == ("en", "de")
    assert manifest["layer_map"]["decoder"] == list(BY_NAME["sandwich"].decoder)
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json", "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| layer map | 0,1,1,1,1,2 | 0,1,1,1,1,2 |" in card
    assert "fairseq-sharing translate out < INPUT" in card
    assert {"model.bin", "config.json"} < names == manifest["sha256"].keys()
    assert all(manifest["sha256"][name] == sha256(tmp_path / "out" / name) for name in names)
