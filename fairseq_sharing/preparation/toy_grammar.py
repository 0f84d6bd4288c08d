"""Compose random sentences of the built-in corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from fairseq_sharing.preparation.toy_words import (
    Adjective,
    Clause,
    Noun,
    Pair,
    Phrase,
    Verb,
    english_number,
    german_number,
    join,
)

Choice = TypeVar("Choice")


class Grammar:
    """Draw random sentences.

    Args:
        data: content of grammar.yaml.
        random_numbers: source of random numbers. Only ``random()`` is used, which is equal in all Python versions.
    """

    def __init__(self, data: dict[str, Any], random_numbers: random.Random):
        self.data = data
        self.random = random_numbers.random
        self.nouns = [
            Noun(en, en_plural, de, gender, de_plural, frozenset(classes.split()), *(oblique or [de]))
            for en, en_plural, de, gender, de_plural, classes, *oblique in data["nouns"]
        ]
        self.adjectives = [
            Adjective(en, de, frozenset(classes.split()), *(stem or [de]))
            for en, de, classes, *stem in data["adjectives"]
        ]
        self.verbs = [self._verb(row) for row in data["verbs"]]

    def choose_held_out(self, count: int) -> frozenset[Pair]:
        """Choose word pairs that must not occur in the training data.

        Args:
            count: number of adjective-noun pairs, and of verb-object pairs.

        Returns:
            English pairs. Every word in them has at least five other partners, so it occurs often in other pairs.
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
        """Draw a random sentence.

        Returns:
            The English sentence, the German sentence, and its adjective-noun and verb-object pairs.
        """
        kind = self._pick_weighted({"main": 45, "question": 15, "subordinate": 22, "that": 8, "coordination": 10})
        en, de, pairs = getattr(self, f"_{kind}")()
        return en[0].upper() + en[1:], de[0].upper() + de[1:], pairs

    def _coordination(self) -> tuple[str, str, set[Pair]]:
        first, second = self._clause(short=True), self._clause(short=True)
        en, de = self._pick(self.data["coordinations"])
        return (
            f"{first.english()}{en} {second.english()}.",
            f"{first.verb_second()}{de} {second.verb_second()}.",
            first.pairs | second.pairs,
        )

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
        # "If he slept" would be a subjunctive, which has a different German translation.
        tense = "present" if en == "if" else self._pick(["present", "past"])
        main, clause = self._clause(short=True, tense=tense), self._clause(short=True, tense=tense)
        pairs = main.pairs | clause.pairs
        if self._chance(0.5):
            subordinate = f"{de} {clause.verb_final()},"
            return f"{en} {clause.english()}, {main.english()}.", main.verb_second(subordinate) + ".", pairs
        return f"{main.english()} {en} {clause.english()}.", f"{main.verb_second()}, {de} {clause.verb_final()}.", pairs

    def _that(self) -> tuple[str, str, set[Pair]]:
        verb = self._pick([verb for verb in self.verbs if verb.frame == "clause"])
        tense = self._pick(["present", "past"])
        main = self._frame(verb, tense, short=True)
        # After a past tense, English shifts other tenses ("said that he would sleep"); grammar.yaml has no such forms.
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
        verb, final = join(adverb[0], adjective.en), f"{adjective.de} {de}"
        return Clause(subject, en, verb, f"{en} {verb}", de, adjective.de, final, tense, adverb, pairs=pairs)

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
        elif verb.frame == "intransitive" and not short and self._chance(0.5):
            self._add_preposition(clause, ["where", "company"], nouns)
        elif verb.frame == "accusative" and not short and self._chance(0.25):
            self._add_preposition(clause, ["receiver"] if verb.receiver and self._chance(0.5) else ["where"], nouns)
        if clause.adverb[0]:
            clause.verb = join(clause.adverb[0], clause.verb)
            clause.plain = join(clause.adverb[0], clause.plain)
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
        return Clause(subject, auxiliary, rest, f"{en} {base}", finite, infinitive, f"{infinitive} {finite}", tense)

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
        """Draw a noun phrase with a noun that is not yet in the clause, and add the noun to ``nouns``."""
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
