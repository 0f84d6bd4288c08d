"""The module that fairseq's own tests import as ``tests.utils``, which its source distribution lacks.

It contains only what the tests selected in ``test_fairseq_own.py`` call: random data, and fairseq's commands.
"""

from __future__ import annotations

import random
import string
import sys
from io import StringIO
from pathlib import Path

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import generate, interactive, preprocess, train, validate

# Imported by tests that are not selected.
create_laser_data_and_config_json = preprocess_summarization_data = None
# Seconds that torch waits for a data loader worker. The wait is in vain if the loader is freed as part of a reference
# cycle, as happens for the loaders of one command while the next one runs in the same process.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1
LANGUAGES = ["--source-lang", "in", "--target-lang", "out"]
# fairseq trains its default size: six layers with d_model 512.
LANGUAGE_MODEL = ["--decoder-layers", "2", "--decoder-embed-dim", "64", "--decoder-ffn-embed-dim", "128"]


class TestDataset(torch.utils.data.Dataset):
    """A list as a dataset."""

    __test__ = False

    def __init__(self, data):
        super().__init__()
        self.data = data
        self.sizes = None

    def __getitem__(self, index):
        return self.data[index]

    def __len__(self):
        return len(self.data)


def dummy_dictionary(vocab_size, prefix="token_"):
    dictionary = Dictionary()
    for number in range(vocab_size):
        dictionary.add_symbol(f"{prefix}{number}")
    dictionary.finalize(padding_factor=1)
    return dictionary


# fairseq has 100 lines, most of which its test of --context-window leaves out; 40 are fewer than 500 tokens, one block.
def create_dummy_data(data_dir, num_examples=40, maxlen=16, alignment=False):
    assert not alignment
    chosen = random.Random(1)
    for split in ("train", "valid", "test"):
        for side in ("in", "out"):
            lines = (
                " ".join(chosen.choices(string.ascii_lowercase, k=chosen.randint(1, maxlen)))
                for _ in range(num_examples)
            )
            Path(data_dir, f"{split}.{side}").write_text("\n".join(lines) + "\n")


def _preprocess(data_dir, side, flags):
    files = [f"--{split}pref={data_dir}/{split}{side}" for split in ("train", "valid", "test")]
    preprocess.main(options.get_preprocessing_parser().parse_args([*files, "--destdir", data_dir, *flags]))


def preprocess_translation_data(data_dir, extra_flags=None):
    _preprocess(data_dir, "", [*LANGUAGES, *(extra_flags or [])])


def preprocess_lm_data(data_dir, languages=None):
    assert not languages
    _preprocess(data_dir, ".out", ["--only-source"])


def _train(data_dir, flags, run_validation, valid_flags):
    common = [data_dir, "--no-progress-bar", "--max-tokens", "500"]
    words = [*common, "--save-dir", data_dir, "--max-epoch", "1", "--num-workers", "0", *flags]
    train.main(options.parse_args_and_arch(options.get_training_parser(), words))
    if run_validation:
        words = [*common, "--path", f"{data_dir}/checkpoint_last.pt", "--valid-subset", "valid", *valid_flags]
        validate.main(options.parse_args_and_arch(options.get_validation_parser(), words))


def train_translation_model(
    data_dir,
    arch,
    extra_flags=None,
    task="translation",
    run_validation=False,
    lang_flags=None,
    extra_valid_flags=None,
    world_size=1,
):
    shared = ["--task", task, *(LANGUAGES if lang_flags is None else lang_flags)]
    flags = ["--arch", arch, "--optimizer", "nag", "--lr", "0.05", "--distributed-world-size", str(world_size)]
    _train(data_dir, [*shared, *flags, *(extra_flags or [])], run_validation, [*shared, *(extra_valid_flags or [])])


def train_language_model(
    data_dir,
    arch,
    extra_flags=None,
    run_validation=False,
    extra_valid_flags=None,
    task="language_modeling",
    world_size=1,
):
    flags = ["--arch", arch, "--optimizer", "adam", "--lr", "0.0001", "--tokens-per-sample", "500"]
    flags += [*LANGUAGE_MODEL, "--distributed-world-size", str(world_size), "--ddp-backend", "legacy_ddp"]
    _train(
        data_dir,
        ["--task", task, *flags, *(extra_flags or [])],
        run_validation,
        ["--task", task, *(extra_valid_flags or [])],
    )


def generate_main(data_dir, extra_flags=None, path=None):
    flags = ["--path", path or f"{data_dir}/checkpoint_last.pt", "--gen-subset", "valid", "--no-progress-bar"]
    flags += ["--beam", "3", "--batch-size", "64", "--max-len-b", "5"]
    words = [data_dir, *flags, *(["--print-alignment"] if extra_flags is None else extra_flags)]
    args = options.parse_args_and_arch(options.get_generation_parser(), words)
    cfg = convert_namespace_to_omegaconf(args)  # Hydra takes a third of a second
    generate.main(cfg)

    cfg.interactive.buffer_size, cfg.interactive.input, cfg.dataset.batch_size = 0, "-", None
    stdin, sys.stdin = sys.stdin, StringIO("h e l l o\n")
    try:
        interactive.main(cfg)
    finally:
        sys.stdin = stdin
