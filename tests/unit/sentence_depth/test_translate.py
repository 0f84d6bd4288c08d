"""Translation with a depth per sentence equals the translation of each sentence at its depth."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
from depth_corpus import DEPTHS, copy_dictionaries, make_checkpoint, sentences, write_pairs
from tiny_models import batch

from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.decoding.at_depth import at_depth
from fairseq_sharing.decoding.fairseq_engine import load_models
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.decoding.translator import Translator
from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.description.sentence_macs import measure_costs
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256
from fairseq_sharing.sentence_depth.file import classifier_file, read_classifier
from fairseq_sharing.sentence_depth.train import Outcome, train_classifier
from fairseq_sharing.terminal import Console

MODELS = {
    "post": {},
    "fast": {"norm": "pre", "fast": True},
    "sequence": {"norm": "pre", "sharing": "sequence"},
    "decoder": {"depths": None, "decoder_depths": "2,4"},
    "depth parameters": {"norm": "pre", "depth_scale": True, "depth_signal": "learned"},
}
SEARCH = Search(beam=3, nbest=2, max_len_b=12)


@dataclass
class Trained:
    """A model with a classifier, and the two depths that belong to its sentences."""

    checkpoint: Path
    data: Path
    outcome: Outcome
    requests: dict[int, DepthRequest]

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
    encoder = {"encoder": 4} if request.param == "decoder" else {}
    return Trained(checkpoint, data, outcome, {n: DepthRequest(**{"encoder": n, "decoder": n, **encoder}) for n in DEPTHS})


def test_classifier_learns_which_depth_belongs_to_a_sentence(trained):
    outcome = trained.outcome
    assert (outcome.sentences, outcome.held_out, outcome.agreement) == (60, 6, 1.0)
    assert outcome.best == outcome.chosen
    assert outcome.score > max(outcome.scores)
    lines, depths = sentences(40, seed=9)
    translator = trained.translator("auto")
    translator.translate(lines, beam=1, max_len_b=3)
    names = {n: "d4" if n == 4 else "e4d2" if trained.requests[2].encoder == 4 else "d2" for n in DEPTHS}
    assert translator.chosen_depths == {names[n]: depths.count(n) for n in DEPTHS}


def test_translations_equal_those_of_each_depth_bit_by_bit_and_in_order(trained):
    lines, depths = sentences(30, seed=8)
    lines[7] = ""
    auto = trained.translator("auto")
    found = auto.hypotheses(lines, SEARCH)
    assert len({hypotheses[0].text for hypotheses in found}) > 3
    for depth, request in trained.requests.items():
        numbers = [number for number, own in enumerate(depths) if own == depth and lines[number]]
        static = trained.translator(request)
        assert static.hypotheses([lines[n] for n in numbers], SEARCH) == [found[n] for n in numbers]
        # The batches of the whole file differ, so scores are rounded differently.
        whole = static.hypotheses(lines, SEARCH)
        assert [whole[n][0].text for n in numbers] == [found[n][0].text for n in numbers]
        alone = lines[numbers[-1]]
        assert auto.hypotheses([alone], SEARCH) == static.hypotheses([alone], SEARCH)
    assert found[7][0].text == ""
    assert auto.hypotheses(lines, SEARCH) == found, "no state is left from other depths"


def test_caches_are_those_of_the_depth_when_it_changes_between_batches(trained):
    """The same generator and model serve batches of changing depth."""
    files = find_model(str(trained.checkpoint), trained.data, Console(stderr=True))
    (model,), task, _ = load_models(files)
    model.make_generation_fast_(need_attn=False)
    settings = Namespace(beam=3, max_len_b=12)
    generator = task.build_generator([model], settings)
    inputs = {key: value for key, value in batch().items() if key != "prev_output_tokens"}
    for depth in (4, 2, 4, 2, 2, 4):
        request = trained.requests[depth]
        with at_depth(files, request) as smaller:
            (alone,), own, _ = load_models(smaller)
        expected = own.inference_step(own.build_generator([alone], settings), [alone], {"net_input": inputs})
        model.use_depth({"encoder": request.encoder, "decoder": request.decoder})
        found = task.inference_step(generator, [model], {"net_input": inputs})
        for ours, theirs in zip(found, expected, strict=True):
            assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
            scores = [[h["positional_scores"].tolist() for h in hypotheses] for hypotheses in (ours, theirs)]
            assert scores[0] == scores[1]


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


def test_ctranslate2_translates_each_sentence_at_its_depth(trained):
    if "decoder" not in str(trained.requests[2]) or trained.requests[2].encoder != 4:
        pytest.skip("one model is enough")
    lines, depths = sentences(12, seed=7)
    choices = {"data": trained.data, "prepared": True, "threads": 1, "engine": "ctranslate2"}
    auto = Translator(trained.checkpoint, depth="auto", **choices)
    found = auto.translate(lines, max_len_b=12)
    assert sum(auto.chosen_depths.values()) == 12
    for depth, request in trained.requests.items():
        numbers = [number for number, own in enumerate(depths) if own == depth]
        static = Translator(trained.checkpoint, depth=request, **choices)
        assert static.translate([lines[n] for n in numbers], max_len_b=12) == [found[n] for n in numbers]


def test_too_few_sentences_and_missing_subsets_are_refused(trained):
    with pytest.raises(SharingError, match="^--subset valid: 19 sentences; allowed: at least 20$"):
        learn(trained.checkpoint, trained.data, sentences=19)
    with pytest.raises(SharingError, match="^--subset news: .* has no such subset; allowed: train, valid, test, ...$"):
        learn(trained.checkpoint, trained.data, subset="news")
