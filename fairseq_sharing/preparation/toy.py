"""Generate the built-in corpus: artificial English sentences, each with its only correct German translation.

A model learns it in minutes, but the corpus requires difficult features of German: gender, case and the three adjective
declensions, verb-second and verb-final order, separable verbs, and numbers with the unit before the ten. The lexicon is
``data-prep/toy/grammar.yaml``; ``toy_grammar.py`` composes the sentences.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from fairseq_sharing.documents import read_yaml
from fairseq_sharing.files import sha256
from fairseq_sharing.preparation import toy_grammar, toy_words
from fairseq_sharing.resources import recipes_dir

SEED = 20
COMPOSITIONAL = "test_compositional"
"""The split whose sentences contain word pairs that occur in no other split."""

HELD_OUT = 60
"""Number of adjective-noun pairs, and of verb-object pairs, that occur only in COMPOSITIONAL."""

WORDS = (5, 15)
"""Minimum and maximum length of English sentences, in words."""


def generate(sizes: Mapping[str, int], seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """Generate the corpus.

    No English or German sentence occurs twice, in any split.

    Args:
        sizes: number of pairs per split.
        seed: random seed.

    Returns:
        For each split, a list of ``{"en": sentence, "de": sentence}``.
    """
    grammar = toy_grammar.Grammar(read_yaml(_grammar_file()), random.Random(seed))
    held_out = grammar.choose_held_out(HELD_OUT)
    corpus: dict[str, list[dict[str, str]]] = {name: [] for name in sizes}
    seen: set[str] = set()
    while unfilled := [name for name in sizes if len(corpus[name]) < sizes[name]]:
        en, de, pairs = grammar.sentence()
        compositional = not held_out.isdisjoint(pairs)
        fitting = [name for name in unfilled if (name == COMPOSITIONAL) == compositional]
        if fitting and WORDS[0] <= len(en.split()) <= WORDS[1] and seen.isdisjoint((en, de)):
            seen |= {en, de}
            corpus[fitting[0]].append({"en": en, "de": de})
    return corpus


def fingerprint() -> str:
    """Identify the grammar and the generator.

    Returns:
        A string that changes whenever the corpus may change.
    """
    files = [_grammar_file(), *(Path(str(module.__file__)) for module in (toy_grammar, toy_words))]
    return " ".join(map(sha256, [*files, Path(__file__)]))


def _grammar_file() -> Path:
    return recipes_dir() / "toy" / "grammar.yaml"
