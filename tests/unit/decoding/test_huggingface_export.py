"""Export models to Hugging Face: logits equal fairseq's, shared weights are stored once, other models are refused."""

from __future__ import annotations

import json
import re
import stat

import pytest
import torch
from huggingface_models import CODE, EXACT, built, difference, export_model, load, offline  # noqa: F401
from safetensors import safe_open
from sharing_cases import BY_NAME, CASES
from tiny_models import make_trainer, save

from fairseq_sharing.commands import main
from fairseq_sharing.decoding import huggingface_check, huggingface_config, huggingface_export, huggingface_library
from fairseq_sharing.decoding.huggingface_config import FSMT, M2M100
from fairseq_sharing.decoding.huggingface_library import MODELING, find_class, quiet
from fairseq_sharing.decoding.huggingface_weights import whole_modules
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256

CLASSES = {"post": "FSMTForConditionalGeneration", "pre": "M2M100ForConditionalGeneration"}


pytestmark = pytest.mark.usefixtures("offline")


# Exact


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_stock_class_computes_the_same(norm, left, monkeypatch, tmp_path):
    model, task = built(norm)
    exported = export_model(monkeypatch, model, task, tmp_path / "out")
    assert exported.architecture == CLASSES[norm]
    assert exported.difference.largest < EXACT
    theirs = load(exported.path)
    assert type(theirs).__name__ == CLASSES[norm]
    assert difference(model, theirs, task, left=left) < EXACT
    # Longer than the table of 64 positions.
    assert difference(model, theirs, task, lengths=(80, 3)) < EXACT


@pytest.mark.filterwarnings("ignore:--activation-fn=gelu_fast has been renamed")
@pytest.mark.parametrize(
    "options",
    [
        {"share_all_embeddings": False},
        {"share_all_embeddings": False, "share_decoder_input_output_embed": True},
        {"no_scale_embedding": True},
        {"decoder_layers": 1, "encoder_ffn_embed_dim": 24, "decoder_attention_heads": 4},
        {"encoder_layers": 1, "decoder_layers": 3},
        {"encoder_embed_dim": 33, "decoder_embed_dim": 33, "encoder_attention_heads": 3, "decoder_attention_heads": 3},
        *({"activation_fn": name} for name in ("gelu", "gelu_accurate", "gelu_fast", "tanh", "linear")),
        {"arch": "transformer"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_every_build_computes_the_same(norm, options, monkeypatch, tmp_path):
    model, task = built(norm, **options)
    exported = export_model(monkeypatch, model, task, tmp_path / "out")
    assert difference(model, load(exported.path), task) < EXACT


@pytest.mark.parametrize(("norm", "words"), [("post", (50, 70)), ("post", (70, 50)), ("pre", (50, 70))])
@pytest.mark.parametrize("shared", [False, True])
def test_two_dictionaries_have_two_sizes(norm, words, shared, monkeypatch, tmp_path):
    model, task = built(norm, words=words, share_all_embeddings=False, share_decoder_input_output_embed=shared)
    export_model(monkeypatch, model, task, tmp_path / "out")
    assert difference(model, load(tmp_path / "out"), task) < EXACT


def test_embeddings_are_tied_where_fairseq_ties_them(norm, monkeypatch, tmp_path):
    export_model(monkeypatch, *built(norm), tmp_path / "one")
    export_model(monkeypatch, *built(norm, share_all_embeddings=False), tmp_path / "three")
    one, three = (load(tmp_path / name) for name in ("one", "three"))
    tables = [(theirs.model.encoder.embed_tokens, theirs.model.decoder.embed_tokens) for theirs in (one, three)]
    assert tables[0][0].weight is tables[0][1].weight
    assert tables[1][0].weight is not tables[1][1].weight
    assert (one.config.tie_word_embeddings, three.config.tie_word_embeddings) == (True, False)


def test_saved_again_computes_the_same(norm, monkeypatch, tmp_path):
    model, task = built(norm, sharing="cycle", unique_layers=2)
    for keep, options in ((False, {}), (True, CODE)):
        folder = tmp_path / str(keep)
        export_model(monkeypatch, model, task, folder, keep_sharing=keep)
        with quiet():
            load(folder, **options).save_pretrained(folder / "again")
        assert difference(model, load(folder / "again", **options), task) < EXACT
        sizes = [(path / "model.safetensors").stat().st_size for path in (folder, folder / "again")]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


# Shared weights


def stored(folder) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("case", [case for case in CASES if "fast" not in case.options], ids=lambda case: case.name)
def test_kept_sharing_stores_the_parameters_once(case, norm, monkeypatch, tmp_path):
    model, task = built(norm, **case.options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    export_model(monkeypatch, model, task, tmp_path / "stock")
    if not case.shares:
        with pytest.raises(SharingError, match="--keep-sharing: no layer of tiny shares weights; omit --keep-sharing"):
            export_model(monkeypatch, model, task, tmp_path / "own", keep_sharing=True)
        assert not (tmp_path / "own").exists()
        return
    exported = export_model(monkeypatch, model, task, tmp_path / "own", keep_sharing=True)
    assert sum(tensor.numel() for tensor in stored(tmp_path / "own").values()) == parameters
    assert (tmp_path / "stock" / "model.safetensors").stat().st_size > exported.size
    theirs = load(tmp_path / "own", **CODE)
    assert difference(model, theirs, task) < EXACT
    used = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ".layers." in name:
            owner = theirs.get_parameter(f"model.{used[id(parameter)]}")
            assert theirs.get_parameter(f"model.{name}") is owner, name


def test_ties_of_the_decoders_table_are_kept(norm, monkeypatch, tmp_path):
    model, task = built(norm, share_all_embeddings=False, share_decoder_input_output_embed=True, sharing="universal")
    export_model(monkeypatch, model, task, tmp_path / "own", keep_sharing=True)
    assert sum(map(torch.numel, stored(tmp_path / "own").values())) == sum(map(torch.numel, model.parameters()))
    theirs = load(tmp_path / "own", dtype=torch.bfloat16, **CODE)
    output = theirs.lm_head if norm == "pre" else theirs.model.decoder.output_projection
    assert output.weight is theirs.model.decoder.embed_tokens.weight
    assert difference(model, load(tmp_path / "own", **CODE), task) < EXACT


def test_kept_sharing_generates_the_same(norm, monkeypatch, tmp_path):
    model, task = built(norm, sharing="cycle_rev", unique_layers=2)
    found = []
    for keep, options in ((False, {}), (True, CODE)):
        export_model(monkeypatch, model, task, tmp_path / str(keep), search=Search(max_len_b=9), keep_sharing=keep)
        theirs = load(tmp_path / str(keep), **options)
        inputs = torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1]])
        found.append(theirs.generate(inputs, attention_mask=inputs.ne(1).long()).tolist())
    assert found[0] == found[1]


def test_own_model_type_requires_trust(monkeypatch, tmp_path):
    model, task = built(sharing="universal")
    export_model(monkeypatch, model, task, tmp_path / "own", keep_sharing=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(tmp_path / "own", trust_remote_code=False)


def test_ties_are_named_by_the_largest_modules():
    names = ["a.0.x.w", "a.0.x.b", "a.0.y.w", "a.1.x.w", "a.1.x.b", "a.1.y.w", "a.10.x.w", "a.10.x.b", "a.10.y.w"]
    ties = {"a.1.x.w": "a.0.x.w", "a.1.x.b": "a.0.x.b", "a.1.y.w": "a.0.y.w", "a.10.x.w": "a.0.x.w"}
    shared = whole_modules({**ties, "a.10.x.b": "a.1.x.b"}, names)
    assert shared == {"a.1": "a.0", "a.10.x.w": "a.0.x.w", "a.10.x.b": "a.1.x.b"}
    assert find_class("tied_parameters", MODELING)(names, shared) == {**ties, "a.10.x.b": "a.1.x.b"}


# Admin


@pytest.mark.parametrize("sharing", [{}, {"sharing": "cycle", "unique_layers": 2}], ids=["none", "cycle"])
def test_admin_is_folded(sharing, monkeypatch, tmp_path):
    """The perturbed residual weights all differ, so that shared first matrices differ by depth."""
    model, task = built(admin="closed_form", **sharing)
    export_model(monkeypatch, model, task, tmp_path / "stock")
    assert difference(model, load(tmp_path / "stock"), task) < EXACT
    if not sharing:
        return
    export_model(monkeypatch, model, task, tmp_path / "own", keep_sharing=True)
    theirs = load(tmp_path / "own", **CODE)
    assert difference(model, theirs, task) < EXACT
    first, third = (theirs.model.encoder.layers[depth] for depth in (0, 2))
    assert first.fc1.weight is not third.fc1.weight
    assert first.fc1.bias is third.fc1.bias
    assert first.fc2.weight is third.fc2.weight
    with quiet():
        theirs.save_pretrained(tmp_path / "again")
    assert difference(model, load(tmp_path / "again", **CODE), task) < EXACT


def test_admin_that_does_not_fold_is_refused(monkeypatch, tmp_path):
    model, task = built(admin="closed_form")
    with torch.no_grad():
        model.decoder.layers[1].residual_weight[0, 3] = 0.0
    with pytest.raises(SharingError, match=r"decoder layer 2: Admin's residual weight 0 is too small .* --engine"):
        export_model(monkeypatch, model, task, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_learned_pos": True}, "--encoder-learned-pos"),
        ({"decoder_learned_pos": True}, "--decoder-learned-pos"),
        ({"layernorm_embedding": True}, "--layernorm-embedding"),
        ({"encoder_normalize_before": True}, "--encoder-normalize-before in one stack only"),
        ({"decoder_normalize_before": True}, "--decoder-normalize-before in one stack only"),
        ({"norm": "pre", "no_decoder_final_norm": True}, "--no-decoder-final-norm"),
        ({"no_token_positional_embeddings": True}, "--no-token-positional-embeddings True"),
        ({"activation_fn": "swish"}, "--activation-fn swish; allowed: gelu, gelu_accurate"),
        ({"share_all_embeddings": False, "decoder_output_dim": 8}, "--decoder-output-dim 8"),
        (
            {"share_all_embeddings": False, "decoder_embed_dim": 24, "decoder_input_dim": 24, "decoder_output_dim": 24},
            "--decoder-embed-dim 24 with --encoder-embed-dim 16",
        ),
        ({"no_cross_attention": True}, "--no-cross-attention True"),
        ({"act": "both"}, "--act both|UniversalEncoder|ACT"),
        ({"depth_signal": "learned"}, "--depth-signal learned"),
        ({"position_per_depth": True}, "--position-per-depth True"),
        (
            {"norm": "pre", "share_all_embeddings": False, "words": (70, 50)},
            r"source dictionary \(70 words\) is larger than its target dictionary \(50\)",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_models_without_a_class_are_refused(options, message, monkeypatch, tmp_path):
    model, task = built(**options)
    with pytest.raises(SharingError, match=f"^tiny: the export to Hugging Face does not support .*{message}") as caught:
        export_model(monkeypatch, model, task, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "allowed: " in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_layers_and_weights_are_refused(monkeypatch, tmp_path):
    model, task = built()
    model.encoder.layers[1].fc1.adapter = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(
        SharingError, match=r"weights of this model \(unexpected keys: model\.encoder\.layers\.1\.fc1\.adapter\)"
    ):
        export_model(monkeypatch, model, task, tmp_path / "out")
    model.encoder.layers[0] = torch.nn.Identity()
    with pytest.raises(SharingError, match="does not support Identity"):
        export_model(monkeypatch, model, task, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("norm", "wrong"), [("post", M2M100), ("pre", FSMT)])
def test_another_class_fails_the_check(norm, wrong, monkeypatch, tmp_path):
    """Without the final norms, which FSMT lacks, the names would be accepted: the numbers must differ."""
    model, task = built(norm)
    if norm == "pre":
        model.encoder.layer_norm = model.decoder.layer_norm = None
    monkeypatch.setattr(huggingface_export, "choose_family", lambda *_: wrong)
    with pytest.raises(SharingError, match=r"differ from fairseq's by|missing keys|unexpected keys"):
        export_model(monkeypatch, model, task, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_layernorm_of_the_embeddings_and_activations_fail_the_check(monkeypatch, tmp_path):
    model, task = built()
    model.cfg.activation_fn = "tanh"
    with pytest.raises(SharingError, match=r"log-probabilities differ from fairseq's by [\d.]+; allowed: at most"):
        export_model(monkeypatch, model, task, tmp_path / "out")
    model, task = built(layernorm_embedding=True)
    model.cfg.layernorm_embedding = False
    with pytest.raises(SharingError, match="unexpected keys: model"):
        export_model(monkeypatch, model, task, tmp_path / "out")


def test_log_probabilities_that_are_not_finite_are_refused(monkeypatch, tmp_path):
    model, task = built()
    score = huggingface_check.score
    monkeypatch.setattr(huggingface_check, "score", lambda *args: score(*args) * float("nan"))
    with pytest.raises(SharingError, match="Hugging Face's model computes log-probabilities that are NaN or infinite"):
        export_model(monkeypatch, model, task, tmp_path / "out")


def test_ensembles_and_other_folders_are_refused(monkeypatch, tmp_path):
    model, task = built()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("of someone else")
    with pytest.raises(SharingError, match="out: exists and is not an exported model; give another folder"):
        export_model(monkeypatch, model, task, tmp_path / "out")
    export_model(monkeypatch, model, task, tmp_path / "new")
    export_model(monkeypatch, model, task, tmp_path / "new")
    files = huggingface_export.ModelFiles("a.pt:b.pt", checkpoints=(tmp_path / "a.pt", tmp_path / "b.pt"))
    with pytest.raises(SharingError, match=r"a\.pt:b\.pt: cannot export several checkpoints; allowed: one"):
        huggingface_export.export(files, tmp_path / "two")


# The folder and the command


def test_folder_describes_the_model(monkeypatch, tmp_path):
    model, task = built(sharing="sandwich", dropout=0.2)
    export_model(monkeypatch, model, task, tmp_path / "out", search=Search(beam=3, lenpen=0.6, max_len_b=100))
    config, generation, manifest = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for name in ("config", "generation_config", "manifest")
    )
    assert config["architectures"] == ["FSMTForConditionalGeneration"]
    assert (config["dropout"], config["encoder_layerdrop"], config["use_cache"]) == (0.2, 0.0, True)
    assert (config["langs"], config["forced_eos_token_id"]) == (["en", "de"], None)
    wanted = {"num_beams": 3, "length_penalty": 0.6, "early_stopping": True, "suppress_tokens": [1]}
    # 64 target positions, with the end of the sentence.
    wanted |= {"min_new_tokens": 1, "max_new_tokens": 64, "decoder_start_token_id": 2, "eos_token_id": 2}
    assert generation.items() >= wanted.items()
    assert not {"max_length", "forced_eos_token_id", "forced_bos_token_id"} & generation.keys()
    assert manifest["layer_map"]["encoder"] == list(BY_NAME["sandwich"].encoder)
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json", "README.md"}
    assert names == manifest["sha256"].keys() == {"config.json", "generation_config.json", "model.safetensors"}
    assert all(manifest["sha256"][name] == sha256(tmp_path / "out" / name) for name in names)
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in names}
    assert len(set(modes.values())) == 1, modes


def test_command_exports_a_checkpoint(data_dir, tmp_path, capsys):
    path = save(make_trainer(data_dir, BY_NAME["cycle"], "pre"), tmp_path / "checkpoint1.pt")
    words = ["export", str(path), "--data", str(data_dir), "--to", "huggingface", "--output", str(tmp_path / "out")]
    assert main([*words, "--keep-sharing"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"out: SharedM2M100ForConditionalGeneration, [\d,]+ bytes, \d+ tensors stored for the \d+ ", out)
    assert "no tokenizer: transformers has none for this text preparation" in out
    assert load(tmp_path / "out", **CODE).config.shared_weights["model.encoder.layers.3"] == "model.encoder.layers.0"
    assert main([*words, "--quantization", "int8"]) == 2
    assert "--quantization int8: allowed only with --to ctranslate2" in capsys.readouterr().err
    words[words.index("huggingface")] = "ctranslate2"
    assert main([*words, "--keep-sharing"]) == 2
    assert "--keep-sharing: allowed only with --to huggingface" in capsys.readouterr().err


def test_missing_and_old_transformers_are_named(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    with pytest.raises(SharingError, match=r"transformers 4\.57\.6 is too old; allowed: 5\.24 or later"):
        huggingface_library.import_transformers()
    monkeypatch.setitem(huggingface_library.sys.modules, "safetensors.torch", None)
    with pytest.raises(
        SharingError, match=r"transformers is not installed; .* pip install 'fairseq-sharing\[huggingface\]'"
    ):
        huggingface_library.import_transformers()


def test_torchaudio_that_cannot_be_imported_is_hidden(monkeypatch, tmp_path, caplog):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('Could not load this library')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(huggingface_library.sys.modules, "torchaudio", raising=False)
    monkeypatch.setattr(huggingface_library.metadata, "version", lambda name: {"torchaudio": "2.11"}.get(name, "2.13"))
    huggingface_library._hide_broken_torchaudio()
    assert huggingface_library.importlib.util.find_spec("torchaudio") is None
    assert "torchaudio 2.11 does not fit torch 2.13; " in caplog.text
    assert "pip uninstall torchaudio" in caplog.text


def test_every_activation_has_a_counterpart():
    from transformers.activations import ACT2FN

    assert all(name in ACT2FN for name in huggingface_config._ACTIVATIONS.values())
