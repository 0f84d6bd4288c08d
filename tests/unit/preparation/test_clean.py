import pytest

from fairseq_sharing.preparation.clean import reason_to_remove

LIMITS = {"min_tokens": 1, "max_tokens": 6, "max_ratio": 1.5, "max_word_length": 5}


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("a b c", "a b", None),  # a ratio of exactly 1.5
        ("a b c d", "a b", "length_ratio"),
        ("a b", "a b c d", "length_ratio"),
        ("", "a", "empty"),
        ("a", "", "empty"),
        ("", "", "empty"),
        ("a b c d e f", "a b c d e f", None),
        ("a b c d e f g", "a b c d e f", "too_long"),
        ("abcde", "a", None),
        ("a", "abcdef", "long_word"),
    ],
)
def test_limits(source: str, target: str, reason: str | None):
    assert reason_to_remove([source, target], LIMITS) == reason


def test_a_single_text_has_no_ratio():
    assert reason_to_remove(["a b c d e f"], LIMITS) is None
    assert reason_to_remove([""], LIMITS) == "empty"
