# ruff: noqa: RUF001 (quotes and dashes of all kinds are what is tested)
import random

import pytest
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from fairseq_sharing.preparation.moses import Normalizer, Tokenizer, needed

PIECES = [
    *".,'\"`´’‘‚“”„«»\u00a0 ()%:;-–—…\r\n\t\x01\x1f\u2028[]<>&|/\\?!$€nsN0159ABaßÜñ中",
    *(
        "..",
        "...",
        "''",
        "´´",
        "  ",
        "\u00a0%",
        "nº\u00a0",
        "\u00a0ºC",
        "\u00a0cm",
        "z.B.",
        "Mr.",
        "No.",
        "Nr.",
        "a.m.",
    ),
    *("DOTMULTI", "MULTI", "'s", "don't", "1,000", "Word", "wort", "@-@"),
]


@pytest.mark.parametrize("lang", ["en", "de", "fr", "cs"])
def test_the_output_is_that_of_sacremoses(lang: str):
    normalizers = MosesPunctNormalizer(lang), Normalizer(lang)
    tokenizers = MosesTokenizer(lang), Tokenizer(lang)
    draw = random.Random(1)
    for _ in range(3000):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 14)))
        normal, same = (normalizer.normalize(text) for normalizer in normalizers)
        assert normal == same, repr(text)
        for flags in ({"escape": False}, {"escape": True, "aggressive_dash_splits": True}):
            tokens, same = (tokenizer.tokenize(normal, return_str=True, **flags) for tokenizer in tokenizers)
            assert tokens == same, repr(normal)


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        (" +", "  "),
        (r"\(", "("),
        (r"\) ([.!:?;,])", ") "),
        (r'(\.+)"(\s*[^<])', '"'),
        ("([a-zA-Z])‘([a-zA-Z])", "‘"),
        ("\u00a0\\?", "\u00a0?"),
        (r"\r", ""),
        ("a|b", ""),
        ("[ab]c", ""),
    ],
)
def test_a_rule_is_skipped_only_without_its_required_literal(pattern: str, literal: str):
    assert needed(pattern) == literal
