"""Which translations become training pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairseq_sharing.decoding.search import Hypothesis
from fairseq_sharing.distillation.select import reason_to_remove, reasons, repeats, select_chunk
from fairseq_sharing.distillation.settings import FILTERS, DistillationSettings
from fairseq_sharing.distillation.translate import FINISHED, UNFINISHED, UNTRANSLATED, choose
from fairseq_sharing.errors import SharingError

SYMBOLS = frozenset("abcdef")
ALL = DistillationSettings(filters=FILTERS, max_ratio=2)


class Overlap:
    """Stands in for References: the share of the reference's words that a translation contains, in percent."""

    def bleu(self, translation: str, reference: str) -> float:
        words = reference.split()
        return 100 * sum(word in translation.split() for word in words) / len(words)


@pytest.mark.parametrize(
    ("state", "source", "translation", "reason"),
    [
        (FINISHED, "a b", "c d", None),
        (UNTRANSLATED, "a b", "", "untranslated"),
        (FINISHED, "a b", "c <unk>", "unknown"),
        (FINISHED, "a b", "c </s>", "unknown"),
        (FINISHED, "a b", "", "empty"),
        (UNFINISHED, "a b", "c d", "unfinished"),
        (FINISHED, "a b", "c d e f", None),
        (FINISHED, "a b", "c d e f a", "ratio"),
        (FINISHED, "a b c d", "e f", None),
        (FINISHED, "a b c d e", "e f", "ratio"),
        (FINISHED, "a b", "a b", "copied"),
        (FINISHED, "a b c d", "e f e f e f e f", "repeated"),
    ],
)
def test_the_first_reason_that_applies_is_counted(state, source, translation, reason):
    assert reason_to_remove(ALL, state, source, translation, SYMBOLS) == reason


@pytest.mark.parametrize(
    ("state", "translation"), [(UNFINISHED, "c"), (FINISHED, ""), (FINISHED, "a b"), (FINISHED, "c c c c c c c")]
)
def test_a_filter_that_is_not_chosen_removes_nothing(state, translation):
    assert reason_to_remove(DistillationSettings(filters=()), state, "a b", translation, SYMBOLS) is None


def test_untranslated_sentences_and_unknown_words_are_always_removed():
    assert reasons(DistillationSettings(filters=())) == ["untranslated", "unknown"]
    assert reasons(DistillationSettings(min_bleu=5))[-1] == "bleu"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("a a a a", True),
        ("a a a b a a a", False),
        ("b a c a c a c a c d", True),
        ("a c a c a c", False),
        ("a b c d a b c d a b c d a b c d", True),
        ("a b c d e a b c d e a b c d e a b c d e", False),
        ("", False),
    ],
)
def test_more_than_three_sequences_in_a_row_are_repeats(words, found):
    assert repeats(words.split()) is found


def _dictionary(folder: Path) -> Path:
    path = folder / "dict.txt"
    path.write_text("".join(f"{symbol} 1\n" for symbol in sorted(SYMBOLS)))
    return path


def test_original_pairs_follow_the_kept_translations(tmp_path):
    chunk = (
        b"a b\nc d\ne f\n",
        b"b a\nd c\nf e\n",
        b"finished\t-0.5\tb b\nunfinished\t-1\td\nfinished\t-1\tf <unk>\n",
    )
    settings = DistillationSettings(originals=2)
    texts, counts = select_chunk(settings, Overlap(), _dictionary(tmp_path), "key", chunk)
    assert texts[0] == b"a b\n" + 2 * b"a b\nc d\ne f\n"
    assert texts[1] == b"b b\n" + 2 * b"b a\nd c\nf e\n"
    assert counts == {"distilled": 1, "unfinished": 1, "unknown": 1, "original": 6}


def test_translations_below_the_minimum_bleu_are_removed(tmp_path):
    chunk = (b"a\na\n", b"c d\nc d\n", b"finished\t0\tc\nfinished\t0\te\n")
    settings = DistillationSettings(min_bleu=50)
    texts, counts = select_chunk(settings, Overlap(), _dictionary(tmp_path), "key", chunk)
    assert texts == (b"a\n", b"c\n")
    assert counts == {"distilled": 1, "bleu": 1, "original": 0}


def test_interpolation_takes_the_best_bleu_and_then_the_higher_score():
    found = [Hypothesis("a", -0.1, 1), Hypothesis("c", -0.3, 1), Hypothesis("d", -0.2, 1)]
    assert choose(found, "c d", Overlap()).text == "d"
    assert choose(found, "c", Overlap()).text == "c"
    assert choose(found[:1], "c", None).text == "a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "worst"}, "^--targets must be one of best, interpolate, sample, got 'worst'$"),
        ({"engine": "torch"}, "^--engine must be one of fairseq, ctranslate2, got 'torch'$"),
        ({"filters": ("short",)}, "^--filter: 'short'; allowed: none, or a list of empty, unfinished, ratio, copied, "),
        ({"nbest": 4}, "^--nbest 4: requires --targets interpolate, got best$"),
        ({"targets": "interpolate", "nbest": 4, "beam": 3}, r"^--nbest must be between 1 and --beam \(3\), got 4$"),
        ({"targets": "sample", "beam": 3}, "^--beam 3: --targets sample has no beam; allowed: best or interpolate$"),
        ({"targets": "sample", "temperature": 0.0}, r"^--temperature must be a number from 0.01 to 100, got 0\.0$"),
        ({"max_ratio": 0.5}, "^--max-ratio must be a finite number >= 1, got 0.5$"),
        ({"min_bleu": 101}, "^--min-bleu must be between 0 and 100, got 101$"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(SharingError, match=message):
        DistillationSettings(**options)


def test_the_beam_is_as_large_as_the_list():
    assert DistillationSettings(targets="interpolate", nbest=35).search().beam == 35
    assert DistillationSettings(targets="interpolate", nbest=2).search().beam == 5
    assert DistillationSettings(targets="interpolate").search().nbest == 5
    assert DistillationSettings().search().nbest == 1
