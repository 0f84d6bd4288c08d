"""Samples follow the model's distribution, in both engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sharing_cases import BY_NAME
from tiny_models import EOS, PAD, make_trainer, save

from fairseq_sharing.decoding.ctranslate2_engine import CTranslate2Engine
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.fairseq_engine import FairseqEngine, load_models
from fairseq_sharing.decoding.model_files import ModelFiles, find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError

SOURCE, SAMPLES = ["w5", "w9", "w7"], 4000


@pytest.fixture(scope="module")
def files(data_dir, tmp_path_factory) -> ModelFiles:
    trainer = make_trainer(data_dir, BY_NAME["sequence"], "pre")
    with torch.no_grad():
        trainer.model.decoder.output_projection.weight.mul_(2)  # a distribution that is not flat
    path = save(trainer, tmp_path_factory.mktemp("sampled") / "checkpoint.pt")
    return find_model(str(path), data_dir, Console(stderr=True))


@pytest.fixture(scope="module", params=["fairseq", "ctranslate2"])
def engine(request, files, tmp_path_factory):
    if request.param == "fairseq":
        return FairseqEngine(files, 1, "cpu")
    folder = Path(export(files, tmp_path_factory.mktemp("exported") / "model").path)
    return CTranslate2Engine(folder, {"source": 20, "target": 20}, None, 1, "cpu")


def expected(files: ModelFiles, temperature: float) -> dict[str, float]:
    """Compute the distribution of the first word, which is not the end of the sentence."""
    (model,), task, _ = load_models(files)
    source = task.source_dictionary.encode_line(" ".join(SOURCE), add_if_not_exist=False).long()[None]
    with torch.no_grad():
        scores = model(source, torch.tensor([source.size(1)]), torch.tensor([[EOS]]))[0][0, 0] / temperature
    scores[[EOS, PAD]] = -torch.inf
    return dict(zip(task.target_dictionary.symbols, scores.softmax(0).tolist(), strict=True))


def distance(one: dict[str, float], other: dict[str, float]) -> float:
    """Return the total variation distance of two distributions."""
    return sum(abs(one.get(word, 0) - other.get(word, 0)) for word in one.keys() | other.keys()) / 2


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_first_words_are_as_frequent_as_probable(engine, files, temperature):
    torch.manual_seed(3)
    search = Search(beam=1, max_len_b=1, temperature=temperature)
    found = Counter(hypotheses[0].text for _, hypotheses in engine.translate([SOURCE] * SAMPLES, search))
    frequencies = {word: count / SAMPLES for word, count in found.items()}
    assert distance(expected(files, 0.5), expected(files, 1.0)) > 0.15
    assert distance(frequencies, expected(files, temperature)) < 0.08
    assert distance(frequencies, expected(files, 1.5 - temperature)) > 0.12


def test_a_temperature_needs_a_beam_of_1_and_is_positive():
    with pytest.raises(SharingError, match=r"^--temperature 0.5: requires --beam 1, got 5$"):
        Search(temperature=0.5)
    with pytest.raises(SharingError, match=r"^--temperature must be a number from 0.01 to 100, got 0$"):
        Search(beam=1, temperature=0)


def test_a_temperature_at_which_all_words_vanish_is_refused(files, monkeypatch):
    engine = FairseqEngine(files, 1, "cpu")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("invalid multinomial distribution (sum of probabilities <= 0)")

    monkeypatch.setattr(engine.task, "inference_step", fail)
    with pytest.raises(SharingError, match=r"^--temperature 0.01: all words of a sentence have the probability 0"):
        list(engine.translate([SOURCE], Search(beam=1, temperature=0.01)))
    with pytest.raises(RuntimeError, match="multinomial"):
        list(engine.translate([SOURCE], Search()))
