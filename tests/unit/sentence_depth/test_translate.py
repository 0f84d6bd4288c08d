"""Translation with a depth per sentence equals the translation of each sentence at its depth."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
from depth_corpus import copy_dictionaries, make_checkpoint, sentences, write_pairs
from tiny_models import batch

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.decoding.at_depth import at_depth
from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.decoding.translator import Translator
from fairseq_sharing.depths.settings import DepthRequest, setting_name
from fairseq_sharing.description.sentence_macs import measure_costs
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256
from fairseq_sharing.sentence_depth.file import classifier_file, read_classifier
from fairseq_sharing.sentence_depth.train import Outcome, train_classifier
from fairseq_sharing.terminal import Console

MODELS = {
    "post": {},
    "fast sequence": {"norm": "pre", "fast": True, "sharing": "sequence", "depth_signal": "learned"},
    "decoder": {"depths": None, "decoder_depths": "2,4", "depth_scale": True},
}
one_model = pytest.mark.parametrize("trained", ["decoder"], indirect=True)
SEARCH = Search(beam=3, nbest=2, max_len_b=12)


@dataclass
class Trained:
    """A model with a classifier."""

    checkpoint: Path
    data: Path
    outcome: Outcome

    def translator(self, depth) -> Translator:
        return Translator(self.checkpoint, data=self.data, prepared=True, threads=1, depth=depth)


def learn(checkpoint, data, **choices) -> Outcome:
    """Train the classifier of a checkpoint on ``valid``."""
    stored = load_checkpoint(checkpoint)
    languages = {"source": "en", "target": "de"}
    choices = {"penalty": 0.0, **choices}
    return train_classifier(checkpoint, data, languages, lambda *wanted: measure_costs(stored, *wanted), **choices)


@pytest.fixture(scope="module", params=MODELS)
def trained(request, data_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    data = copy_dictionaries(data_dir, place / "bin")
    checkpoint = make_checkpoint(data_dir, place / "checkpoint1.pt", **MODELS[request.param])
    before = sha256(checkpoint)
    write_pairs(checkpoint, data)
    outcome = learn(checkpoint, data)
    assert sha256(checkpoint) == before
    return Trained(checkpoint, data, outcome)


def chosen_by(translator: Translator, lines: list[str]) -> list[dict[str, int]]:
    """Return the depth that the classifier chooses for each line."""
    engine = translator._engine
    return [engine._classifier.settings[index] for index in engine.choose([line.split() for line in lines], SEARCH)]


def test_classifier_learns_which_depth_belongs_to_a_sentence(trained):
    outcome = trained.outcome
    assert (outcome.sentences, outcome.held_out) == (60, 6)
    assert outcome.agreement >= 5 / 6
    assert sum(outcome.best) == sum(outcome.chosen) == 6
    assert outcome.score > max(outcome.scores)
    lines, depths = sentences(40, seed=9)
    translator = trained.translator("auto")
    chosen = [setting["decoder"] for setting in chosen_by(translator, lines)]
    assert sum(one == other for one, other in zip(chosen, depths, strict=True)) >= 32
    translator.translate(lines, beam=1, max_len_b=3)
    assert translator.chosen_depths == {
        setting_name(setting): count
        for setting in outcome.settings
        if (count := sum(setting["decoder"] == depth for depth in chosen))
    }


def test_translations_equal_those_of_each_depth_bit_by_bit_and_in_order(trained):
    lines, _ = sentences(30, seed=8)
    auto = trained.translator("auto")
    chosen = chosen_by(auto, lines)
    found = auto.hypotheses([*lines, ""], SEARCH)
    assert found.pop()[0].text == ""
    assert len({hypotheses[0].text for hypotheses in found}) > 2
    used = 0
    for setting in trained.outcome.settings:
        numbers = [number for number, own in enumerate(chosen) if own == setting]
        used += bool(numbers)
        static = trained.translator(DepthRequest.of(setting))
        assert static.hypotheses([lines[n] for n in numbers], SEARCH) == [found[n] for n in numbers]
        # The batches of the whole file differ, so scores are rounded differently.
        whole = static.hypotheses(lines, SEARCH)
        assert [whole[n][0].text for n in numbers] == [found[n][0].text for n in numbers]
        if numbers:
            alone = [lines[numbers[-1]]]
            assert auto.hypotheses(alone, SEARCH) == static.hypotheses(alone, SEARCH)
    assert used >= 2
    assert auto.hypotheses(lines, SEARCH) == found, "no state is left from other depths"


def test_caches_are_those_of_the_depth_when_it_changes_between_batches(trained):
    """The same generator and model serve batches of changing depth."""
    files = find_model(str(trained.checkpoint), trained.data, Console(stderr=True))
    (model,), task, _ = load_models(files)
    model.make_generation_fast_(need_attn=False)
    settings = Namespace(beam=3, max_len_b=12)
    generator = task.build_generator([model], settings)
    inputs = {key: value for key, value in batch().items() if key != "prev_output_tokens"}
    first, last = trained.outcome.settings[0], trained.outcome.settings[-1]
    for setting in (last, first, last, first, first, last):
        with at_depth(files, DepthRequest.of(setting)) as smaller:
            (alone,), own, _ = load_models(smaller)
        alone.make_generation_fast_(need_attn=False)
        expected = own.inference_step(own.build_generator([alone], settings), [alone], {"net_input": inputs})
        model.use_depth(setting)
        found = task.inference_step(generator, [model], {"net_input": inputs})
        for ours, theirs in zip(found, expected, strict=True):
            assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
            scores = [[h["positional_scores"].tolist() for h in hypotheses] for hypotheses in (ours, theirs)]
            assert scores[0] == scores[1]


@one_model
def test_penalty_and_target(trained):
    file = classifier_file(trained.checkpoint)
    before = file.read_bytes()
    try:
        outcome = learn(trained.checkpoint, trained.data, penalty=100.0, target="correctness", sentences=40)
        assert (outcome.sentences, outcome.held_out) == (40, 4)
        assert outcome.chosen == (4, *[0] * (len(outcome.settings) - 1)), "no layer is worth 100 tokens"
        training = {"target": "correctness", "penalty": 100.0, "subset": "valid", "sentences": 40}
        assert read_classifier(trained.checkpoint).training == training
    finally:
        file.write_bytes(before)


@one_model
def test_ctranslate2_translates_each_sentence_at_its_depth(trained):
    lines, _ = sentences(12, seed=7)
    choices = {"data": trained.data, "prepared": True, "threads": 1, "engine": "ctranslate2"}
    auto = Translator(trained.checkpoint, depth="auto", **choices)
    found = auto.translate(lines, max_len_b=12)
    chosen = chosen_by(auto, lines)
    assert len(auto.chosen_depths) == 2
    for setting in trained.outcome.settings:
        numbers = [number for number, own in enumerate(chosen) if own == setting]
        static = Translator(trained.checkpoint, depth=DepthRequest.of(setting), **choices)
        assert static.translate([lines[n] for n in numbers], max_len_b=12) == [found[n] for n in numbers]


@one_model
def test_too_few_sentences_and_missing_subsets_are_refused(trained):
    with pytest.raises(SharingError, match=r"^--subset valid: 19 sentences; allowed: at least 20$"):
        learn(trained.checkpoint, trained.data, sentences=19)
    with pytest.raises(
        SharingError, match=r"^--subset news: .* has no such subset; allowed: train, valid, test, \.\.\.$"
    ):
        learn(trained.checkpoint, trained.data, subset="news")
