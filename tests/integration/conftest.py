"""Fixtures for the tests of fairseq's commands: a tiny corpus, training on it, and a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairseq_processes import PLUGIN, lines_by_kind
from tiny_training import CYCLE_REV, TRAINING, distributed, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, commands) -> Path:
    """A folder with the raw text of SUBSETS (NAME.en, NAME.de) and the output of fairseq-preprocess in ``bin``."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    commands.run(
        *("fairseq_cli.preprocess", "-s", "en", "-t", "de", "--joined-dictionary", "--destdir", folder / "bin"),
        *("--trainpref", folder / "train", "--validpref", folder / "valid"),
        *("--testpref", f"{folder / 'test'},{folder / 'test1'}"),
    )
    return folder


@pytest.fixture(scope="session")
def data(corpus) -> Path:
    """The binarized corpus."""
    return corpus / "bin"


@pytest.fixture(scope="session")
def train_words(data):
    """Return the command line of a training into a folder: a small model unless overridden."""

    def words(save_dir: Path, *more: object, user_dir: object = PLUGIN, model=CYCLE_REV) -> list[object]:
        plugin = ["--user-dir", user_dir] if user_dir else []
        return [data, *plugin, *model, *TRAINING, "--save-dir", save_dir, *more]

    return words


@pytest.fixture(scope="session")
def train(commands, train_words):
    """Train to the end. The arguments are those of ``train_words`` and the exit status."""

    def run(save_dir: Path, *more: object, status: int | None = 0, **choices):
        return commands.run("fairseq_cli.train", *train_words(save_dir, *more, **choices), status=status)

    return run


@pytest.fixture(scope="session")
def train_on_ranks(commands, train_words):
    """Train with one process per rank; return the log of the first. The arguments are also those of ``train_words``."""

    def run(save_dir: Path, ranks: int, *more: object, **choices) -> str:
        words = train_words(save_dir, *more, **choices)
        if ranks > 1:
            words += [*distributed(ranks), "--distributed-no-spawn", "--distributed-rank"]
        started = [commands.start("fairseq_cli.train", *words, *([rank] if ranks > 1 else [])) for rank in range(ranks)]
        for command in started:
            command.wait()
        return started[0].stdout

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train) -> Path:
    """The checkpoints of two epochs of a shared model. Do not modify them."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, "--max-epoch", "2")
    return folder


@pytest.fixture(scope="session")
def translate(commands, data):
    """Run fairseq-generate on a test set; return its lines by kind: ``["H"][sentence] -> (score, text)``."""

    def run(path: object, *more: object, subset: str = "test1", user_dir: object = PLUGIN, data=data) -> dict:
        done = commands.run(
            *("fairseq_cli.generate", data, "--path", path, "--gen-subset", subset, "--beam", "3", "--cpu"),
            *(("--user-dir", user_dir) if user_dir else ()),
            *("--batch-size", "32", "--min-len", "5", "--max-len-b", "9", *more),
        )
        return lines_by_kind(done.stdout)

    return run
