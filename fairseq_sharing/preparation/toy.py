"""The built-in corpus: artificial English sentences with their one correct German translation.

It is small enough to learn in minutes and still asks for what makes German hard: gender, case and the three
adjective declensions, verb-second and verb-final order, separable verbs, numbers said unit before ten. The
words are in ``data-prep/toy/grammar.yaml``, how they are put together in ``toy_grammar.py``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import yaml

from fairseq_sharing.files import sha256
from fairseq_sharing.preparation import toy_grammar, toy_words
from fairseq_sharing.resources import recipes_dir

SEED = 20
COMPOSITIONAL = "test_compositional"
"""The split of sentences with pairs of words that no other split shows together."""

HELD_OUT = 60
"""Adjective-noun pairs, and as many verb-object pairs, that only COMPOSITIONAL has."""

WORDS = (5, 15)
"""Shortest and longest English sentence, in words."""


def generate(sizes: Mapping[str, int], seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """Make the corpus.

    No two of its pairs, in whichever splits, have the same English or the same German sentence.

    Args:
        sizes: number of pairs of each split.
        seed: of the random numbers.

    Returns:
        For each split a list of ``{"en": sentence, "de": sentence}``.
    """
    grammar = toy_grammar.Grammar(yaml.safe_load(_grammar_file().read_text(encoding="utf-8")), random.Random(seed))
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
    """Identify the grammar and this program.

    Returns:
        A string that changes whenever the corpus could.
    """
    files = [_grammar_file(), *(Path(str(module.__file__)) for module in (toy_grammar, toy_words))]
    return " ".join(map(sha256, [*files, Path(__file__)]))


def _grammar_file() -> Path:
    return recipes_dir() / "toy" / "grammar.yaml"
