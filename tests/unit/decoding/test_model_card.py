"""Model cards state recorded facts, and leave out what is unknown."""

from __future__ import annotations

import json

import pytest
import yaml
from evaluation_results import BLEU_SIGNATURE, result
from huggingface_models import built, export_model, offline  # noqa: F401

from fairseq_sharing.commands import main
from fairseq_sharing.decoding.model_card import Usage, card_of_run
from fairseq_sharing.errors import SharingError

USAGE = Usage("fairseq", "bash", ["fairseq-sharing translate RUN < INPUT"])
CONFIG = """\
run: cycle
dataset: tiny
seed: 3
train: {arch: transformer_sharing_tiny, encoder_embed_dim: 128, decoder_embed_dim: 64, sharing: cycle}
"""
RECORD = {
    "run": "cycle",
    "seed": 3,
    "source_lang": "en",
    "target_lang": "de",
    "batch": "4,096 tokens per batch",
    "train_seconds": 5400.0,
    "device": {"kind": "cpu", "name": "Some CPU", "count": 2},
    "versions": {"torch": "2.13.0", "ctranslate2": None},
}
MANIFEST = {
    "dataset": "tiny",
    "source_lang": "en",
    "target_lang": "de",
    "tokenizer": {"name": "moses", "escape": False},
    "subword": {"name": "bpe", "size": 100},
    "train": {"lines": 28998},
    "recipe": {
        "splits": {
            "train": [{"texts": {"en": {"url": "https://example.org/a.en", "file": ""}, "de": {"url": ""}}}],
            "valid": [{"texts": {"en": {"url": "https://example.org/valid.en"}}}],
        }
    },
}


@pytest.fixture
def run(tmp_path):
    folder, data = tmp_path / "cycle-seed3", tmp_path / "data"
    for new in (folder, data):
        new.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "run.json").write_text(json.dumps({**RECORD, "data": str(data)}))
    (folder / "result.json").write_text(json.dumps(result("cycle", "cycle", seed=3, bleu=37.956)))
    (data / "manifest.json").write_text(json.dumps(MANIFEST))
    return folder


def parts(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_has_metadata_of_the_hub(run):
    front, _ = parts(card_of_run(run, USAGE, license="cc-by-4.0"))
    assert front["language"] == ["en", "de"]
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == ("cc-by-4.0", "fairseq", "translation")
    assert "parameter-sharing" in front["tags"]
    assert (front["datasets"], front["metrics"]) == (["tiny"], ["bleu", "chrf"])
    (model,) = front["model-index"]
    (scored,) = model["results"]
    assert model["name"] == "Cycle, M=2, N=4, trained on tiny"
    assert scored["dataset"]["name"] == "test_2016_flickr"
    bleu = {"type": "bleu", "value": 37.956, "name": "BLEU", "args": {"signature": BLEU_SIGNATURE, "seed": 3}}
    assert scored["metrics"][0] == bleu


def test_card_is_read_by_the_library_of_the_hub(run):
    from huggingface_hub import ModelCard

    scores = ModelCard(card_of_run(run, USAGE)).data.eval_results
    assert [(score.metric_type, score.metric_value) for score in scores] == [("bleu", 37.956), ("chrf", 55.5)]


def test_card_says_what_was_trained_and_measured(run):
    _, body = parts(card_of_run(run, USAGE))
    for line in (
        "# en-de: Cycle, M=2, N=4, trained on tiny",
        "| layers | 4 | 4 |",
        "| unique layers | 2 | 2 |",
        "| layer map | 0,1,0,1 | 0,1,0,1 |",
        "| model dimension | 128 | 64 |",
        "1,246,912 parameters. Layers with the same number in the layer map share their parameters.",
        "fairseq-sharing translate RUN < INPUT",
        "- sources of the training data: https://example.org/a.en",
        "- training pairs: 28,998",
        "- tokenizer: moses, escape False",
        "- seed: 3",
        "- updates: 3,840 in 30 epochs",
        "- averaged checkpoints: 2 (checkpoint29.pt to checkpoint30.pt)",
        "- training time: 1.5 hours",
        "- device: cpu, Some CPU, 2",
        "- versions: torch 2.13.0",
        "arch: transformer_sharing_tiny",
        "| test_2016_flickr | 1000 | 37.96 | 55.50 |",
        "Seed 3. One run: a demonstration, not a comparison of methods. Search: beam 5, length penalty 1.0.",
        f"- BLEU: `{BLEU_SIGNATURE}`",
        "- Translates single sentences from en to de only.",
    ):
        assert f"\n{line}\n" in body, line
    assert "artificial" not in body


def test_unknown_facts_are_left_out(run):
    (run / "result.json").unlink()
    record = {key: value for key, value in RECORD.items() if key in ("source_lang", "target_lang")}
    (run / "run.json").write_text(json.dumps(record))
    front, body = parts(card_of_run(run, USAGE))
    assert not {"license", "metrics", "model-index"} & front.keys()
    assert front["datasets"] == ["tiny"]
    for heading in ("## Model", "## Data", "## Evaluation", "parameters"):
        assert heading not in body
    assert "None" not in body
    assert "\n\n\n" not in body


def test_artificial_data_and_license_of_the_data_are_named(run):
    manifest = {**MANIFEST, "artificial": True, "license": "CC0"}
    (run.parent / "data" / "manifest.json").write_text(json.dumps(manifest))
    _, body = parts(card_of_run(run, USAGE))
    assert "The corpus is artificial, so the model does not translate real text.\n" in body
    assert "- license of the data: CC0\n" in body


def test_text_of_files_stays_on_its_line(run):
    record = {**RECORD, "data": str(run.parent / "data"), "batch": "one\n# two\x1b[31m"}
    (run / "run.json").write_text(json.dumps(record))
    _, body = parts(card_of_run(run, USAGE))
    assert "- batch: one # two\\\\x1b\\[31m\n" in body  # a Markdown page shows \x1b[31m


def test_other_folders_and_language_models_are_refused(run, tmp_path):
    with pytest.raises(
        SharingError, match=r"data: not a run directory of fairseq-sharing train: config\.yaml is missing"
    ):
        card_of_run(tmp_path / "data", USAGE)
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({**MANIFEST, "target_lang": ""}))
    with pytest.raises(SharingError, match="is a language model; allowed: translation models"):
        card_of_run(run, USAGE)
    (run / "run.json").write_text("{}")
    with pytest.raises(
        SharingError, match="its languages are not recorded; give the prepared data directory with --data"
    ):
        card_of_run(run, USAGE)


def test_command_prints_or_writes_the_card(run, tmp_path, capsys):
    assert main(["card", str(run), "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    assert "fairseq-sharing translate cycle-seed3 < INPUT" in printed
    assert main(["card", str(run), "--license", "mit", "--output", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == printed
    assert main(["card", str(tmp_path / "none")]) == 2
    assert "fairseq-sharing card: error: " in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_export_contains_a_card(monkeypatch, tmp_path):
    model, task = built(sharing="universal")
    export_model(monkeypatch, model, task, tmp_path / "out", keep_sharing=True)
    front, body = parts((tmp_path / "out" / "README.md").read_text())
    assert front["library_name"] == "transformers"
    assert "# en-de: tiny\n" in body
    assert "| layer map | 0,0,0,0,0,0 | 0,0,0,0,0,0 |\n" in body
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters." in body
    assert "## How to use" not in body, "there is no tokenizer"
    assert "## Training" not in body


EVIL = "x\n```\n---\n<script>alert(1)</script> [a](javascript:b) | `c`\n# H"


def test_texts_of_others_stay_text(run):
    """Configuration, record and manifest come with a run from someone else."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"] |= {"note": EVIL, "encoder_embed_dim": EVIL}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    data = run.parent / "data"
    (data / "manifest.json").write_text(
        json.dumps({**MANIFEST, "dataset": EVIL, "license": EVIL, "tokenizer": {"name": "moses", EVIL: EVIL}})
    )
    record = {**RECORD, "data": str(data), "batch": EVIL, "versions": {"torch": EVIL}, "device": {"name": EVIL}}
    (run / "run.json").write_text(json.dumps(record))
    front, body = parts(card_of_run(run, USAGE, license=EVIL))
    assert front["datasets"] == ["x ``` --- <script>alert(1)</script> [a](javascript:b) | `c` # H"]
    assert front["license"] == front["datasets"][0]
    fence, inside = "", []
    for line in body.splitlines():
        if line.startswith("```"):
            fence = "" if line == fence else fence or line.rstrip("abcdefghijklmnopqrstuvwxyz")
        elif not fence:
            inside.append(line)
    assert not fence
    text = "\n".join(inside)
    for active in ("<script", "[a](", "`c`", "\n# H"):
        assert active not in text.replace("\\" + active[0], ""), active
    assert text.count("\\<script") == 9


def test_the_command_of_a_card_is_safe_to_copy(run, capsys):
    folder = run.rename(run.parent / "a; touch $(id) `id`")
    assert main(["card", str(folder)]) == 0
    assert "\nfairseq-sharing translate 'a; touch $(id) `id`' < INPUT\n" in capsys.readouterr().out
