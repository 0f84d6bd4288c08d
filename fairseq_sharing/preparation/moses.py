"""Normalize and tokenize with sacremoses, skipping rules that cannot change a sentence.

sacremoses applies about seventy substitutions to every sentence. Most of them search for a character that the sentence
does not contain; testing for the character first takes about 1/50 of the time. Rules, order and output are unchanged.
"""

from __future__ import annotations

import re
from re import Pattern

from sacremoses import MosesPunctNormalizer, MosesTokenizer


class Normalizer(MosesPunctNormalizer):
    """Normalize punctuation.

    Args:
        lang: language code.
    """

    def __init__(self, lang: str):
        super().__init__(lang)
        self._rules = [(needed(pattern), re.compile(pattern), text) for pattern, text in self.substitutions]

    def normalize(self, text: str) -> str:
        """Normalize a sentence as sacremoses does.

        Args:
            text: the sentence.

        Returns:
            The sentence with plain quotes, dashes and spaces.
        """
        for literal, pattern, replacement in self._rules:
            if literal in text:
                text = pattern.sub(replacement, text)
        return text.strip()


def needed(pattern: str) -> str:
    """Return a string that a text must contain for a pattern to change it.

    Args:
        pattern: regular expression of a sacremoses rule.

    Returns:
        The longest literal outside of groups; empty if unknown.
    """
    if pattern == " +":  # replaced by one space, so single spaces do not change
        return "  "
    outside = re.split(r"(?<!\\)\(.*?(?<!\\)\)", pattern)
    plain = [part for part in outside if not re.search(r"\\\w|(?<!\\)[][.+*?|^$]", part)]
    literals = [re.sub(r"\\([^\w\s])", r"\1", part) for part in plain]
    return max(literals, key=len, default="")


class Tokenizer(MosesTokenizer):
    """Split words and punctuation.

    Args:
        lang: language code.
    """

    def __init__(self, lang: str):
        super().__init__(lang)
        self._lower, self._alpha = frozenset(self.IsLower), frozenset(self.IsAlpha)
        for name in ("NONBREAKING_PREFIXES", "NUMERIC_ONLY_PREFIXES"):
            setattr(self, name, frozenset(getattr(self, name)))
        self.DEDUPLICATE_SPACE = _Spaces(), " "
        for name in ("COMMA_SEPARATE_1", "COMMA_SEPARATE_2", "COMMA_SEPARATE_3"):
            setattr(self, name, _if_in(",", getattr(self, name)))
        for name in ("NON_SPECIFIC_APOSTROPHE", "TRAILING_DOT_APOSTROPHE"):
            setattr(self, name, _if_in("'", getattr(self, name)))
        for name in ("ENGLISH_SPECIFIC_APOSTROPHE", "FR_IT_SPECIFIC_APOSTROPHE"):
            setattr(self, name, [_if_in("'", rule) for rule in getattr(self, name)])

    def replace_multidots(self, text: str) -> str:
        """Replace runs of dots by markers."""
        return super().replace_multidots(text) if ".." in text else text

    def restore_multidots(self, text: str) -> str:
        """Restore runs of dots from markers."""
        return super().restore_multidots(text) if "MULTI" in text else text

    def islower(self, text: str) -> bool:
        """Return whether all characters are lower case."""
        return self._lower.issuperset(text)

    def isanyalpha(self, text: str) -> bool:
        """Return whether any character is a letter."""
        return not self._alpha.isdisjoint(text)

    def handles_nonbreaking_prefixes(self, text: str) -> str:
        """Split off full stops that do not end an abbreviation.

        sacremoses' decision for a token depends only on the token and the first character after it.
        """
        tokens = text.split()
        for number, token in enumerate(tokens):
            if token[-1] == "." and len(token) > 1:
                after = f" {tokens[number + 1][0]}" if number + 1 < len(tokens) else ""
                tokens[number] = super().handles_nonbreaking_prefixes(token + after).removesuffix(after)
        return " ".join(tokens)


class _Spaces:
    """Replaces white space by single spaces and strips the ends, which sacremoses would do afterwards."""

    def sub(self, _: str, text: str) -> str:
        return " ".join(text.split())


class _Guarded:
    """A pattern that is applied only to texts that contain a literal."""

    def __init__(self, literal: str, pattern: Pattern[str]):
        self.literal, self.pattern = literal, pattern

    def sub(self, replacement: str, text: str) -> str:
        return self.pattern.sub(replacement, text) if self.literal in text else text


def _if_in(literal: str, rule: tuple[Pattern[str], str]) -> tuple[_Guarded, str]:
    return _Guarded(literal, rule[0]), rule[1]
