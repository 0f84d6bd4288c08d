"""What the tests of fairseq's commands share: a tiny corpus, how to train on it, and a trained model."""

from __future__ import annotations

import random
from multiprocessing import forkserver
from pathlib import Path

import pytest
from fairseq_processes import ENVIRONMENT, PLUGIN, Commands

# Words of English and, by their place, of German: what there is to learn.
WORDS = [f"{first}{second}" for first in "bdfghk" for second in "aeiou"]
# Name of a subset -> sentences; none is a multiple of 8, fairseq's --required-batch-size-multiple.
SUBSETS = {"train": 300, "valid": 61, "test": 461, "test1": 5}
LAYERS = ["--encoder-layers", "4", "--decoder-layers", "4"]
SIZE = "--encoder-embed-dim 16 --encoder-ffn-embed-dim 24 --encoder-attention-heads 2 --share-all-embeddings".split()
CYCLE_REV = ["--arch", "transformer_sharing", *LAYERS, "--sharing", "cycle_rev", "--unique-layers", "2"]


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Commands:
    """Starts commands of fairseq and of this project."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        forkserver.ensure_running()
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, commands) -> Path:
    """A folder with the raw text of SUBSETS (NAME.en, NAME.de) and, in ``bin``, what fairseq-preprocess makes of it."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    for subset, sentences in SUBSETS.items():
        lines = [draw.choices(WORDS, k=draw.randint(2, 9)) for _ in range(sentences)]
        (folder / f"{subset}.en").write_text("".join(" ".join(line) + "\n" for line in lines))
        # The other language has the same words, each with an ending, in the opposite order.
        (folder / f"{subset}.de").write_text("".join(" ".join(w + "n" for w in line[::-1]) + "\n" for line in lines))
    commands.run(
        *("fairseq_cli.preprocess", "-s", "en", "-t", "de", "--joined-dictionary", "--destdir", folder / "bin"),
        *("--trainpref", folder / "train", "--validpref", folder / "valid"),
        *("--testpref", f"{folder / 'test'},{folder / 'test1'}"),
    )
    return folder


@pytest.fixture(scope="session")
def data(corpus) -> Path:
    """The binarised corpus."""
    return corpus / "bin"


@pytest.fixture(scope="session")
def train_words(data):
    """Gives the words of a training into a folder: a small model, unless more words say otherwise."""

    def words(save_dir: Path, *more: object, user_dir: object = PLUGIN, model=CYCLE_REV, size=SIZE) -> list:
        return [
            *(data, "--task", "translation", "-s", "en", "-t", "de", "--seed", "1", *model, *size),
            *(("--user-dir", user_dir) if user_dir else ()),
            *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam"),
            *("--lr", "0.005", "--clip-norm", "1.0", "--batch-size", "24", "--cpu"),
            *("--log-format", "json", "--log-interval", "1", "--save-dir", save_dir, *more),
        ]

    return words


@pytest.fixture(scope="session")
def train(commands, train_words):
    """Trains to the end; takes what ``train_words`` takes, and the exit status."""

    def run(save_dir: Path, *more: object, status: int | None = 0, **choices):
        return commands.run("fairseq_cli.train", *train_words(save_dir, *more, **choices), status=status)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train) -> Path:
    """The checkpoints of three epochs of a shared model; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, "--max-epoch", "3")
    return folder


@pytest.fixture(scope="session")
def translate(commands, data):
    """Runs fairseq-generate on a test set; gives its lines by kind: ``["H"][sentence] -> (score, text)``."""

    def run(path: object, *more: object, subset: str = "test1", user_dir: object = PLUGIN, data=data) -> dict:
        done = commands.run(
            *("fairseq_cli.generate", data, "--path", path, "--gen-subset", subset, "--beam", "3", "--cpu"),
            *(("--user-dir", user_dir) if user_dir else ()),
            *("--batch-size", "32", "--max-len-b", "12", *more),
        )
        return lines_by_kind(done.stdout)

    return run


def lines_by_kind(output: str) -> dict[str, dict[int, list[str]]]:
    """Read the lines ``KIND-NUMBER<tab>field<tab>...`` of generate and interactive."""
    kinds: dict[str, dict[int, list[str]]] = {}
    for line in output.splitlines():
        name, *fields = line.split("\t")
        kind, _, number = name.partition("-")
        if len(kind) == 1 and number.isdigit():
            assert int(number) not in kinds.setdefault(kind, {}), f"{name} came twice"
            kinds[kind][int(number)] = fields
    return kinds
