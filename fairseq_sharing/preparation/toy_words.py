"""Define words, phrases and clauses of the built-in corpus, each in English and German."""

from __future__ import annotations

from dataclasses import dataclass, field

Pair = tuple[str, str]


@dataclass(frozen=True)
class Noun:
    """A noun; ``oblique`` is the German singular in every case but the nominative."""

    en: str
    en_plural: str
    de: str
    gender: str
    de_plural: str
    classes: frozenset[str]
    oblique: str

    def german(self, case: str, plural: bool) -> str:
        """Inflect for case and number."""
        if not plural:
            return self.de if case == "nom" else self.oblique
        return self.de_plural + ("n" if case == "dat" and self.de_plural[-1] not in "ns" else "")


@dataclass(frozen=True)
class Adjective:
    """An adjective; ``stem`` takes endings, ``de`` is the uninflected form."""

    en: str
    de: str
    classes: frozenset[str]
    stem: str


@dataclass(frozen=True)
class Verb:
    """A verb: English base, form for he, past; German prefix, infinitive, forms for ich and er, past participle."""

    en: tuple[str, str, str]
    prefix: str
    de: tuple[str, str, str, str]
    frame: str
    subject: frozenset[str]
    object: frozenset[str]
    sein: bool
    receiver: bool
    modal: bool


@dataclass(frozen=True)
class Phrase:
    """A noun phrase or pronoun: English, German by case, verb agreement (ich, er or wir)."""

    en: str
    de: dict[str, str]
    agreement: str = "er"
    classes: frozenset[str] = frozenset()
    noun: str = ""
    pairs: frozenset[Pair] = frozenset()


@dataclass
class Clause:
    """The parts of a clause, which are ordered by the type of the sentence.

    ``finite`` is the German finite verb, ``tail`` the end of a main clause, ``final`` the end of a subordinate clause
    (both combined). ``auxiliary`` starts an English question and ``verb`` is the rest of its verb; ``plain`` is the
    English verb of a statement.
    """

    subject: Phrase
    auxiliary: str
    verb: str
    plain: str
    finite: str
    tail: str
    final: str
    tense: str
    adverb: Pair = ("", "")
    en_rest: list[str] = field(default_factory=list)
    middle: list[str] = field(default_factory=list)
    pairs: set[Pair] = field(default_factory=set)

    def english(self) -> str:
        """Order as a statement."""
        return join(self.subject.en, self.plain, *self.en_rest)

    def english_question(self) -> str:
        """Order as a question."""
        return join(self.auxiliary, self.subject.en, self.verb, *self.en_rest)

    def verb_second(self, first: str = "") -> str:
        """Order as a main clause that starts with ``first``, or with the subject."""
        head = [first, self.finite, self.subject.de["nom"]] if first else [self.subject.de["nom"], self.finite]
        return join(*head, self.adverb[1], *self.middle, self.tail)

    def verb_first(self) -> str:
        """Order as a question."""
        return join(self.finite, self.subject.de["nom"], self.adverb[1], *self.middle, self.tail)

    def verb_final(self) -> str:
        """Order as a subordinate clause."""
        return join(self.subject.de["nom"], self.adverb[1], *self.middle, self.final)


def german_number(number: int, words: dict[str, list[str]]) -> str:
    """Return a number in German words, with the unit before the ten.

    Args:
        number: 2 to 99.
        words: "de" (names from one) and "de_tens" (names from twenty).

    Returns:
        For example "dreiundzwanzig" for 23.
    """
    tens, unit = divmod(number, 10)
    if tens < 2:
        return words["de"][number - 1]
    return (words["de"][unit - 1] + "und" if unit else "") + words["de_tens"][tens - 2]


def english_number(number: int, words: dict[str, list[str]]) -> str:
    """Return a number in English words.

    Args:
        number: 2 to 99.
        words: "en" (names from one) and "en_tens" (names from twenty).

    Returns:
        For example "twenty-three" for 23.
    """
    tens, unit = divmod(number, 10)
    if tens < 2:
        return words["en"][number - 1]
    return words["en_tens"][tens - 2] + (f"-{words['en'][unit - 1]}" if unit else "")


def join(*words: str) -> str:
    """Join words by spaces.

    Args:
        words: words or phrases; empty ones are skipped.

    Returns:
        The text.
    """
    return " ".join(word for word in words if word)
