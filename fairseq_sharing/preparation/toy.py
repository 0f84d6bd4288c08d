"""The built-in corpus: artificial English sentences with their one correct German translation.

It is small enough to learn in minutes and still asks for what makes German hard: gender, case and the three
adjective declensions, verb-second and verb-final order, separable verbs, numbers said unit before ten. The
words are in ``data-prep/toy/grammar.yaml``; this file knows how they are put together. It never changes by
itself: the same version makes the same corpus everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fairseq_sharing.preparation.files import sha256
from fairseq_sharing.resources import recipes_dir

SEED = 20
SIZES = {"train": 20_000, "valid": 500, "test": 500, "test_compositional": 500}
HELD_OUT = 60
"""Adjective-noun pairs, and as many verb-object pairs, that only test_compositional has."""

WORDS = (5, 15)
"""Shortest and longest English sentence, in words."""

Choice = TypeVar("Choice")
Pair = tuple[str, str]


def generate(sizes: dict[str, int] | None = None, seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """Make the corpus.

    No two pairs of it, in whichever splits, have the same English or the same German sentence. The held-out
    pairs of words are in every sentence of test_compositional and in no other.

    Args:
        sizes: number of pairs of each split; SIZES when None.
        seed: of the random numbers.

    Returns:
        For each split a list of ``{"en": sentence, "de": sentence}``.
    """
    grammar = Grammar(yaml.safe_load(_grammar_file().read_text(encoding="utf-8")), random.Random(seed))
    held_out = grammar.choose_held_out(HELD_OUT)
    sizes = sizes or SIZES
    corpus: dict[str, list[dict[str, str]]] = {name: [] for name in sizes}
    seen: set[str] = set()
    while any(len(corpus[name]) < size for name, size in sizes.items()):
        en, de, pairs = grammar.sentence()
        if not WORDS[0] <= len(en.split()) <= WORDS[1] or en in seen or de in seen:
            continue
        compositional = not held_out.isdisjoint(pairs)
        name = next(
            (
                name
                for name, size in sizes.items()
                if (name == "test_compositional") == compositional and len(corpus[name]) < size
            ),
            None,
        )
        if name:
            seen |= {en, de}
            corpus[name].append({"en": en, "de": de})
    return corpus


def fingerprint() -> str:
    """Identify the grammar and this program.

    Returns:
        A string that changes whenever the corpus could.
    """
    return f"{sha256(_grammar_file())} {sha256(Path(__file__))}"


def german_number(number: int, words: dict[str, list[str]]) -> str:
    """Say a number in German, the unit before the ten.

    Args:
        number: 2 to 99.
        words: "de", names from one, and "de_tens", names from twenty.

    Returns:
        For example "dreiundzwanzig" for 23.
    """
    tens, unit = divmod(number, 10)
    if tens < 2:
        return words["de"][number - 1]
    return (words["de"][unit - 1] + "und" if unit else "") + words["de_tens"][tens - 2]


def english_number(number: int, words: dict[str, list[str]]) -> str:
    """Say a number in English.

    Args:
        number: 2 to 99.
        words: "en", names from one, and "en_tens", names from twenty.

    Returns:
        For example "twenty-three" for 23.
    """
    tens, unit = divmod(number, 10)
    if tens < 2:
        return words["en"][number - 1]
    return words["en_tens"][tens - 2] + (f"-{words['en'][unit - 1]}" if unit else "")


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
    """An adjective; ``stem`` takes the endings, ``de`` stands alone."""

    en: str
    de: str
    classes: frozenset[str]
    stem: str


@dataclass(frozen=True)
class Verb:
    """A verb: English base, with he, past; German prefix, infinitive, with ich, with er, past participle."""

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
    """A noun phrase or pronoun: English, German by case, agreement of its verb (ich, er or wir)."""

    en: str
    de: dict[str, str]
    agreement: str = "er"
    classes: frozenset[str] = frozenset()
    noun: str = ""
    pairs: frozenset[Pair] = frozenset()


@dataclass
class Clause:
    """A clause in the parts that its order is made of.

    ``finite`` is the verb that moves, ``tail`` what stays at the end of a main clause, ``final`` the two
    together as a subordinate clause ends. ``auxiliary`` asks an English question; ``verb`` is the rest of
    the English verb then, ``plain`` the English verb of a statement.
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
        return _join(self.subject.en, self.plain, *self.en_rest)

    def english_question(self) -> str:
        """Order as a question."""
        return _join(self.auxiliary, self.subject.en, self.verb, *self.en_rest)

    def verb_second(self, first: str = "") -> str:
        """Order as a main clause, after something at its head or after the subject."""
        head = [first, self.finite, self.subject.de["nom"]] if first else [self.subject.de["nom"], self.finite]
        return _join(*head, self.adverb[1], *self.middle, self.tail)

    def verb_first(self) -> str:
        """Order as a question."""
        return _join(self.finite, self.subject.de["nom"], self.adverb[1], *self.middle, self.tail)

    def verb_final(self) -> str:
        """Order as a subordinate clause."""
        return _join(self.subject.de["nom"], self.adverb[1], *self.middle, self.final)


class Grammar:
    """Draw sentences.

    Args:
        data: content of grammar.yaml.
        random_numbers: their source. Only ``random()`` is called, which is the same in every Python version.
    """

    def __init__(self, data: dict[str, Any], random_numbers: random.Random):
        self.data = data
        self.random = random_numbers.random
        self.nouns = [
            Noun(*row[:5], frozenset(row[5].split()), row[6] if len(row) > 6 else row[2]) for row in data["nouns"]
        ]
        self.adjectives = [
            Adjective(row[0], row[1], frozenset(row[2].split()), row[3] if len(row) > 3 else row[1])
            for row in data["adjectives"]
        ]
        self.verbs = [self._verb(row) for row in data["verbs"]]

    def choose_held_out(self, count: int) -> frozenset[Pair]:
        """Choose pairs of words that training must not show together.

        Args:
            count: adjective-noun pairs, and as many verb-object pairs.

        Returns:
            English pairs. Every word of them has at least five partners, so it is seen often without this one.
        """
        combinations = [
            [(a.en, n.en) for a in self.adjectives for n in self.nouns if a.classes & n.classes],
            [(v.en[0], n.en) for v in self.verbs for n in self.nouns if v.object & n.classes],
        ]
        chosen: set[Pair] = set()
        for pairs in combinations:
            partners = {word: sum(word in pair for pair in pairs) for pair in pairs for word in pair}
            taken: list[Pair] = []
            while len(taken) < count:
                pair = self._pick(pairs)
                fewest = min(partners[word] - sum(word in other for other in taken) for word in pair)
                if pair not in taken and fewest > 5:
                    taken.append(pair)
            chosen.update(taken)
        return frozenset(chosen)

    def sentence(self) -> tuple[str, str, set[Pair]]:
        """Draw a sentence.

        Returns:
            English, German, and the adjective-noun and verb-object pairs in it.
        """
        kind = self._pick_weighted({"main": 45, "question": 15, "subordinate": 22, "that": 8, "and": 10})
        if kind == "main":
            en, de, pairs = self._main()
        elif kind == "question":
            en, de, pairs = self._question()
        elif kind == "subordinate":
            en, de, pairs = self._subordinate()
        elif kind == "that":
            en, de, pairs = self._that()
        else:
            first, second = self._clause(short=True), self._clause(short=True)
            word = self._pick(self.data["coordinations"])
            en, de = (
                f"{one}{'' if word[side].startswith(',') else ' '}{word[side]} {other}."
                for side, (one, other) in enumerate(
                    [(first.english(), second.english()), (first.verb_second(), second.verb_second())]
                )
            )
            pairs = first.pairs | second.pairs
        return en[0].upper() + en[1:], de[0].upper() + de[1:], pairs

    def _main(self) -> tuple[str, str, set[Pair]]:
        clause = self._clause()
        if not self._chance(0.4):
            return clause.english() + ".", clause.verb_second() + ".", clause.pairs
        en, de, _ = self._pick([row for row in self.data["times"] if clause.tense in row[2].split()])
        return f"{en} {clause.english()}.", clause.verb_second(de) + ".", clause.pairs

    def _question(self) -> tuple[str, str, set[Pair]]:
        clause = self._clause()
        if self._chance(0.3):
            en, de = self._pick(self.data["questions"])
            return f"{en} {clause.english_question()}?", f"{de} {clause.verb_first()}?", clause.pairs
        return clause.english_question() + "?", clause.verb_first() + "?", clause.pairs

    def _subordinate(self) -> tuple[str, str, set[Pair]]:
        en, de = self._pick(self.data["conjunctions"])
        # "If he slept" would be a subjunctive, which has another German translation.
        tense = "present" if en == "if" else self._pick(["present", "past"])
        main, clause = self._clause(short=True, tense=tense), self._clause(short=True, tense=tense)
        pairs = main.pairs | clause.pairs
        if self._chance(0.5):
            subordinate = f"{de} {clause.verb_final()},"
            return f"{en} {clause.english()}, {main.english()}.", main.verb_second(subordinate) + ".", pairs
        return f"{main.english()} {en} {clause.english()}.", (
            f"{main.verb_second()}, {de} {clause.verb_final()}."
        ), pairs

    def _that(self) -> tuple[str, str, set[Pair]]:
        verb = self._pick([verb for verb in self.verbs if verb.frame == "clause"])
        tense = self._pick(["present", "past"])
        main = self._frame(verb, tense, short=True)
        # After a past tense English changes the others: "said that he would sleep", which grammar.yaml does not have.
        clause = self._clause(short=True, tense="past" if tense == "past" else None)
        return (
            f"{main.english()} that {clause.english()}.",
            f"{main.verb_second()}, dass {clause.verb_final()}.",
            main.pairs | clause.pairs,
        )

    def _clause(self, short: bool = False, tense: str | None = None) -> Clause:
        tense = tense or self._pick_weighted({"present": 40, "past": 30, "modal": 22, "future": 8})
        if tense in ("present", "past") and self._chance(0.12):
            return self._copula(tense, short)
        frames = {"intransitive": 25, "motion": 10, "accusative": 40, "dative": 8, "ditransitive": 0 if short else 15}
        frame = self._pick_weighted(frames)
        verbs = [verb for verb in self.verbs if verb.frame == frame and (verb.modal or tense in ("present", "past"))]
        return self._frame(self._pick(verbs), tense, short)

    def _copula(self, tense: str, short: bool) -> Clause:
        classes = frozenset(self._pick(["person", "animal", "thing", "food", "place", "fixture"]).split())
        subject = self._subject(classes, short, adjective=False)
        adjective = self._pick([a for a in self.adjectives if a.classes & subject.classes])
        index = ("ich", "er", "wir").index(subject.agreement)
        en = (("am", "is", "are") if tense == "present" else ("was", "was", "were"))[index]
        de = (("bin", "ist", "sind") if tense == "present" else ("war", "war", "waren"))[index]
        adverb = self._adverb()
        pairs = {(adjective.en, subject.noun)} if subject.noun else set()
        return Clause(
            subject, en, _join(adverb[0], adjective.en), _join(en, adverb[0], adjective.en), de, adjective.de,
            f"{adjective.de} {de}", tense, adverb, pairs=pairs,
        )  # fmt: skip

    def _frame(self, verb: Verb, tense: str, short: bool) -> Clause:
        subject = self._subject(verb.subject, short)
        clause = self._conjugate(verb, subject, tense)
        clause.pairs |= subject.pairs
        nouns = {subject.noun}
        if verb.frame in ("intransitive", "clause") and tense in ("present", "past"):
            clause.adverb = self._adverb()
        if verb.frame == "ditransitive":
            self._add_object(clause, self._noun_phrase(frozenset(["person"]), nouns, short=True), "dat")
        if verb.object:
            phrase = self._noun_phrase(verb.object, nouns, short)
            clause.pairs.add((verb.en[0], phrase.noun))
            self._add_object(clause, phrase, "dat" if verb.frame == "dative" else "acc")
        if verb.frame == "motion":
            self._add_preposition(clause, ["direction"], nouns)
        elif verb.frame == "intransitive" and (self._chance(0.5) and not short):
            self._add_preposition(clause, ["where", "company"], nouns)
        elif verb.frame == "accusative" and (self._chance(0.25) and not short):
            self._add_preposition(clause, ["receiver"] if verb.receiver and self._chance(0.5) else ["where"], nouns)
        if clause.adverb[0]:
            clause.verb = _join(clause.adverb[0], clause.verb)
            clause.plain = _join(clause.adverb[0], clause.plain)
        return clause

    def _conjugate(self, verb: Verb, subject: Phrase, tense: str) -> Clause:
        index = ("ich", "er", "wir").index(subject.agreement)
        base, third, past = verb.en
        infinitive, participle = verb.prefix + verb.de[0], verb.prefix + verb.de[3]
        if tense == "present":
            finite = (verb.de[1], verb.de[2], verb.de[0])[index]
            do, plain = ("does", third) if index == 1 else ("do", base)
            return Clause(subject, do, base, plain, finite, verb.prefix, verb.prefix + finite, tense)
        if tense == "past":
            perfect = ("bin", "ist", "sind") if verb.sein else ("habe", "hat", "haben")
            finite = perfect[index]
            return Clause(subject, "did", base, past, finite, participle, f"{participle} {finite}", tense)
        modal = self._pick([row for row in self.data["modals"] if row.get("future", False) == (tense == "future")])
        en, finite = modal["en"][index], modal["de"][index]
        auxiliary, rest = en, base
        if modal.get("do"):
            auxiliary, rest = "does" if index == 1 else "do", f"{modal['en'][0]} {base}"
        return Clause(
            subject, auxiliary, rest, f"{en} {base}", finite, infinitive, f"{infinitive} {finite}", tense
        )

    def _add_object(self, clause: Clause, phrase: Phrase, case: str) -> None:
        clause.en_rest.append(phrase.en)
        clause.middle.append(phrase.de[case])
        clause.pairs |= phrase.pairs

    def _add_preposition(self, clause: Clause, uses: list[str], nouns: set[str]) -> None:
        en, de, case, classes, _ = self._pick([row for row in self.data["prepositions"] if row[4] in uses])
        phrase = self._noun_phrase(frozenset(classes.split()), nouns, short=self._chance(0.6))
        german = f"{de} {phrase.de[case]}"
        for long, contracted in self.data["contractions"].items():
            if german.startswith(long + " "):
                german = contracted + german.removeprefix(long)
        clause.en_rest.append(f"{en} {phrase.en}")
        clause.middle.append(german)
        clause.pairs |= phrase.pairs

    def _subject(self, classes: frozenset[str], short: bool, adjective: bool = True) -> Phrase:
        if "person" in classes and self._chance(0.3):
            en, de, agreement = self._pick(self.data["pronouns"])
            return Phrase(en, {"nom": de}, agreement, frozenset(["person"]))
        return self._noun_phrase(classes, set(), short, adjective)

    def _noun_phrase(
        self, classes: frozenset[str], nouns: set[str], short: bool = False, adjective: bool = True
    ) -> Phrase:
        """Draw a noun phrase with a noun of some class that is not yet in the clause, and add it to those that are."""
        noun = self._pick([noun for noun in self.nouns if noun.classes & classes and noun.en not in nouns])
        nouns.add(noun.en)
        plural = self._chance(0.2 if noun.classes & {"place", "surface"} else 0.35)
        determiners = [row for row in self.data["determiners"] if row[1] or not plural]
        # "the" and "a" make up half of the determiners, as in real text.
        determiner = self._pick(determiners[:1] if self._chance(0.35) else determiners)
        en, de = [determiner[0]], determiner[2]
        kind, endings = determiner[3], self.data["endings"]
        table = endings["definite" if kind == "definite" else f"determiner_{kind}"]
        number = 0
        if plural:
            en = [determiner[1]]
            number = self._number() if self._chance(0.35) else 0
            if self._chance(0.4):  # books, three books
                en, table, kind = [], None, "strong"
        chosen = None
        if adjective and self._chance(0.3 if short else 0.5):
            chosen = self._pick([a for a in self.adjectives if a.classes & noun.classes])
        if number:
            en.append(english_number(number, self.data["numbers"]))
        en += [chosen.en] if chosen else []
        en.append(noun.en_plural if plural else noun.en)
        if en[0] == "a" and en[1][0] in "aeiou":
            en[0] = "an"
        gender = "mfn".index(noun.gender) if not plural else 3
        declension = endings[f"adjective_{'weak' if kind == 'definite' else kind}"]
        german = {}
        for case in ("nom", "acc", "dat"):
            words = [de + table[case][gender].strip("-")] if table else []
            words += [german_number(number, self.data["numbers"])] if number else []
            words += [chosen.stem + declension[case][gender]] if chosen else []
            german[case] = " ".join([*words, noun.german(case, plural)])
        pairs = frozenset([(chosen.en, noun.en)] if chosen else [])
        return Phrase(" ".join(en), german, "wir" if plural else "er", noun.classes, noun.en, pairs)

    def _number(self) -> int:
        low, high = (2, 12) if self._chance(0.6) else (13, 99)
        return low + int(self.random() * (high - low + 1))

    def _adverb(self) -> Pair:
        en, de = self._pick(self.data["adverbs"]) if self._chance(0.25) else ("", "")
        return en, de

    def _verb(self, row: dict[str, Any]) -> Verb:
        prefix, _, infinitive = row["de"][0].rpartition("|")
        return Verb(
            tuple(row["en"]),
            prefix,
            (infinitive, *row["de"][1:]),
            row["frame"],
            frozenset(row["subject"].split()),
            frozenset(row.get("object", "").split()),
            row.get("sein", False),
            row.get("for", False),
            row.get("modal", True),
        )

    def _chance(self, probability: float) -> bool:
        return self.random() < probability

    def _pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(self.random() * len(choices))]

    def _pick_weighted(self, weights: dict[str, int]) -> str:
        return self._pick([name for name, weight in weights.items() for _ in range(weight)])


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _grammar_file() -> Path:
    return recipes_dir() / "toy" / "grammar.yaml"
