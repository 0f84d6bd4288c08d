import itertools
import random
import re

import pytest
import yaml

from fairseq_sharing.preparation import toy
from fairseq_sharing.preparation.toy_grammar import Grammar
from fairseq_sharing.preparation.toy_words import Clause, Phrase, english_number, german_number
from fairseq_sharing.resources import recipes_dir

SIZES = {"train": 3000, "valid": 100, "test": 100, "test_compositional": 100}


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict[str, str]]]:
    return toy.generate(SIZES)


@pytest.fixture(scope="module")
def data() -> dict:
    return yaml.safe_load((recipes_dir() / "toy" / "grammar.yaml").read_text(encoding="utf-8"))


def test_the_corpus_is_the_same_every_time(corpus: dict):
    assert toy.generate(SIZES) == corpus
    assert corpus["train"][0] == {
        "en": "Because her girls eat the cake, we wake up.",
        "de": "Weil ihre Mädchen den Kuchen essen, wachen wir auf.",
    }


@pytest.mark.parametrize("lang", ["en", "de"])
def test_no_sentence_is_in_the_corpus_twice(corpus: dict, lang: str):
    sentences = [pair[lang] for pairs in corpus.values() for pair in pairs]
    assert len(set(sentences)) == len(sentences) == sum(SIZES.values())


def test_sentences_have_5_to_15_words(corpus: dict):
    lengths = {len(pair["en"].split()) for pairs in corpus.values() for pair in pairs}
    assert (min(lengths), max(lengths)) == (5, 15)


def test_the_lexicon_has_about_150_lexemes_of_three_genders(data: dict):
    lexemes = sum(len(data[kind]) for kind in ("nouns", "adjectives", "verbs"))
    assert 140 <= lexemes <= 160
    assert {row[3] for row in data["nouns"]} == {"m", "f", "n"}
    english = [row[0] for kind in ("nouns", "adjectives") for row in data[kind]]
    assert len(set(english)) == len(english)


def test_only_the_compositional_test_set_shows_the_held_out_pairs(data: dict):
    grammar = Grammar(data, random.Random(toy.SEED))
    held_out = grammar.choose_held_out(toy.HELD_OUT)
    assert len(held_out) == 2 * toy.HELD_OUT
    corpus = toy.generate(SIZES)
    together = {name: 0 for name in SIZES}
    sentences = {pair["en"]: name for name, pairs in corpus.items() for pair in pairs}
    seen: set[str] = set()
    trained: set[tuple[str, str]] = set()
    while len(seen) < len(sentences):
        en, _, pairs = grammar.sentence()
        if en in sentences and en not in seen:
            seen.add(en)
            together[sentences[en]] += not held_out.isdisjoint(pairs)
            trained |= pairs if sentences[en] == "train" else set()
    assert together == {"train": 0, "valid": 0, "test": 0, "test_compositional": 100}
    parts = {word for pair in trained for word in pair}
    assert {word for pair in held_out for word in pair} <= parts, "a held-out word is never seen in training"


def test_numbers_say_the_unit_before_the_ten(data: dict):
    words = data["numbers"]
    spoken = {number: german_number(number, words) for number in range(2, 100)}
    assert len(set(spoken.values())) == 98
    assert [spoken[n] for n in (2, 12, 16, 17, 20, 21, 30, 66, 77, 99)] == [
        "zwei", "zwölf", "sechzehn", "siebzehn", "zwanzig", "einundzwanzig", "dreißig", "sechsundsechzig",
        "siebenundsiebzig", "neunundneunzig",
    ]  # fmt: skip
    assert [english_number(n, words) for n in (2, 15, 40, 73)] == ["two", "fifteen", "forty", "seventy-three"]


def test_clause_orders():
    clause = Clause(
        Phrase("the man", {"nom": "der Mann"}), "did", "open", "opened", "hat", "aufgemacht", "aufgemacht hat", "past",
        en_rest=["the door"], middle=["die Tür"],
    )  # fmt: skip
    assert clause.english() == "the man opened the door"
    assert clause.english_question() == "did the man open the door"
    assert clause.verb_second() == "der Mann hat die Tür aufgemacht"
    assert clause.verb_second("gestern") == "gestern hat der Mann die Tür aufgemacht"
    assert clause.verb_first() == "hat der Mann die Tür aufgemacht"
    assert clause.verb_final() == "der Mann die Tür aufgemacht hat"


def test_nouns_take_the_dative_plural_and_weak_endings(data: dict):
    nouns = {noun.de: noun for noun in Grammar(data, random.Random(0)).nouns}
    dative = {name: nouns[name].german("dat", plural=True) for name in ("Kind", "Frau", "Auto", "Apfel", "Garten")}
    assert dative == {"Kind": "Kindern", "Frau": "Frauen", "Auto": "Autos", "Apfel": "Äpfeln", "Garten": "Gärten"}
    assert [nouns["Junge"].german(case, plural=False) for case in ("nom", "acc", "dat")] == [
        "Junge",
        "Jungen",
        "Jungen",
    ]


# From a school grammar, not from grammar.yaml: words that can precede a singular noun of each gender.
BEFORE = {
    "m": "der den dem ein einen einem dieser diesen diesem jeder jeden jedem",
    "f": "die der eine einer diese dieser jede jeder",
    "n": "das dem ein einem dieses diesem jedes jedem",
}


def test_articles_agree_with_their_nouns(corpus: dict, data: dict):
    singular = {row[2]: row[3] for row in data["nouns"]} | {row[6]: row[3] for row in data["nouns"] if len(row) > 6}
    plural = {row[4] for row in data["nouns"]} | {row[4] + "n" for row in data["nouns"]}
    articles = {word for words in BEFORE.values() for word in words.split()}
    checked = 0
    for pair in corpus["train"]:
        words = re.findall(r"\w+", pair["de"])
        for article, noun in itertools.pairwise(words):
            if article.lower() in articles and noun in singular and noun not in plural:
                assert article.lower() in BEFORE[singular[noun]].split(), pair["de"]
                checked += 1
    assert checked > 500
    contracted = re.compile(r"\b(in (dem|das)|zu (dem|der)) ", re.IGNORECASE)
    assert not [pair for pair in corpus["train"] if contracted.search(pair["de"])]


@pytest.mark.parametrize(
    ("german", "english"),
    [
        (r"^Gestern (hat|haben|habe|ist|sind|bin|war|waren) ", "^Yesterday "),
        (r", (weil|obwohl|wenn|während) .* \w+\.$", r"\b(because|although|if|while)\b"),
        (r"\bwird \w+ .*en\.$", r"\bwill\b"),
    ],
)
def test_the_corpus_has_verb_second_and_verb_final_sentences(corpus: dict, german: str, english: str):
    found = [pair for pair in corpus["train"] if re.search(german, pair["de"])]
    assert len(found) > 10
    assert all(re.search(english, pair["en"]) for pair in found if english.startswith("^"))
