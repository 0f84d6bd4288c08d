import io
import json
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.text import Pipeline

LANGUAGES = {"source": "en", "target": "de"}
MOSES = {"name": "moses", "aggressive_dashes": False, "escape": False}


@pytest.fixture
def bpe_pipeline(tmp_path: Path) -> Pipeline:
    codes = tmp_path / "codes.bpe"
    codes.write_text("#version: 0.2\nH u\nHu n\nHun d</w>\n", encoding="utf-8")
    return Pipeline(LANGUAGES, MOSES, {"name": "bpe", "size": 3}, codes)


def test_moses_tokenization_keeps_case_and_abbreviations():
    pipeline = Pipeline(LANGUAGES, MOSES, {"name": "none"})
    # Output of Moses' tokenizer.perl -l en and -l de: "Mr." and "z." are abbreviations, a final full stop is not.
    assert pipeline.tokenize("Mr. Smith isn't here, he said.", "source") == "Mr. Smith isn 't here , he said ."
    assert pipeline.tokenize("Er trägt z.B. 3,5 kg (schwer).", "target") == "Er trägt z.B. 3,5 kg ( schwer ) ."


@pytest.mark.parametrize(
    "sentence",
    [
        "Der alte Mann kauft ein rotes Buch.",
        'Er sagte: "Das ist gut", und ging.',
        "Hat sie 3,5 Liter (oder mehr) getrunken?",
        "Ein rot-weiß gestreifter Ball; 50% Rabatt!",
        "Preis: 5 & 6 [x] | 7",
    ],
)
def test_decoding_gives_the_sentence_back(bpe_pipeline: Pipeline, sentence: str):
    assert bpe_pipeline.decode(bpe_pipeline.encode(sentence, "target")) == sentence


def test_nothing_is_escaped_for_html():
    pipeline = Pipeline(LANGUAGES, MOSES, {"name": "none"})
    assert pipeline.tokenize("<b>AT&T's</b> [1|2]") == "< b > AT & T 's < / b > [ 1 | 2 ]"
    assert pipeline.decode("R & D ' s &amp;") == "R & D 's &amp;"


def test_bpe_marks_and_joins_subwords(bpe_pipeline: Pipeline):
    assert bpe_pipeline.encode("Hund Hunde", "target") == "Hund Hun@@ d@@ e"
    assert bpe_pipeline.join("Hund Hun@@ d@@ e") == "Hund Hunde"


@pytest.mark.parametrize("tokenizer", [MOSES, {"name": "none"}])
@pytest.mark.parametrize("character", list("\r\v\f\x1c\x1d\x1e\x1f\x85\u00a0\u2028\u2029\u3000\t"))
def test_white_space_of_any_kind_separates_tokens_and_is_removed(tokenizer: dict, character: str):
    tokens = Pipeline(LANGUAGES, tokenizer, {"name": "none"}).encode(f"red{character}dog")
    assert tokens == "red dog"
    assert len(tokens.splitlines()) == 1


def test_empty_sentence_stays_empty(bpe_pipeline: Pipeline):
    assert bpe_pipeline.encode("") == bpe_pipeline.encode(" \u2028 ") == ""
    assert bpe_pipeline.decode("") == ""


def test_sentencepiece_round_trip(tmp_path: Path):
    import sentencepiece

    text = [f"Der {word} sieht den Hund, nicht die Katze." for word in ("Mann", "König", "Gast", "Bruder")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=30, minloglevel=2
    )
    path = tmp_path / "sentencepiece.model"
    path.write_bytes(model.getvalue())
    pipeline = Pipeline(LANGUAGES, {"name": "none"}, {"name": "sentencepiece"}, path)
    pieces = pipeline.encode(text[1])
    assert pieces.startswith("\u2581")
    assert len(pieces.split(" ")) > 5
    assert pipeline.decode(pieces) == text[1]


def test_from_manifest_builds_the_same_pipeline(tmp_path: Path, bpe_pipeline: Pipeline):
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {
                "source_lang": "en",
                "target_lang": "de",
                "tokenizer": MOSES,
                "subword": {"name": "bpe", "model": "codes.bpe", "size": 3},
            }
        )
    )
    assert Pipeline.from_manifest(tmp_path).encode("Hunde.", "target") == bpe_pipeline.encode("Hunde.", "target")


def test_missing_manifest_and_model_are_reported(tmp_path: Path):
    with pytest.raises(SharingError, match=r"manifest\.json: no such file; prepare the data with"):
        Pipeline.from_manifest(tmp_path)
    with pytest.raises(SharingError, match=r"codes\.bpe: the bpe model is missing; re-run fairseq-sharing prepare"):
        Pipeline(LANGUAGES, MOSES, {"name": "bpe"}, tmp_path / "codes.bpe").encode("a")
