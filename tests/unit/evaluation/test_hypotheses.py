"""The command that translates a test set with a run's model."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from fairseq_sharing.evaluation import hypotheses
from fairseq_sharing.evaluation.settings import EvaluationSettings
from fairseq_sharing.evaluation.steps import Steps
from fairseq_sharing.experiment.run_directory import RunDirectory

SEVERAL = {"lang_pairs": ["en-de", "de-en"], "langs": "en,de", "decoder_langtok": True, "encoder_langtok": "tgt"}


@pytest.mark.parametrize(
    ("train", "flags"),
    [
        ({}, []),
        ({"decoder_langtok": True}, []),
        (
            {**SEVERAL, "lang_tok_replacing_bos_eos": False},
            ["--lang-pairs", "en-de,de-en", "--langs", "en,de", "--encoder-langtok", "tgt", "--decoder-langtok"],
        ),
    ],
)
def test_a_model_for_several_directions_is_told_about_its_languages(train, flags, tmp_path, monkeypatch):
    manifest = {"source_lang": "en", "target_lang": "de", "tokenizer": {"name": "none"}, "subword": {"name": "none"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    run = RunDirectory(tmp_path / "run")
    run.evaluation.mkdir(parents=True)
    OmegaConf.save({"train": train}, run.config_file)
    called = []
    monkeypatch.setattr(hypotheses, "generate", lambda words, *_: called.append(words) or ["a b"])
    settings = EvaluationSettings.of({})
    translator = hypotheses.RunTranslator(run, tmp_path, {**manifest, "files": {}}, settings, "some_task")
    monkeypatch.setattr(Steps, "record", lambda *_: None)
    test = {"name": "test", "segments": 1, "subset": "test"}
    assert translator.translate(test, tmp_path / "a.pt", {}, Steps(run.steps_file), Console(quiet=True)) == ["a b"]
    ((*words,),) = called
    first, last = words.index("--target-lang"), words.index("--beam")
    assert words[first:last] == ["--target-lang", "de", *flags]
