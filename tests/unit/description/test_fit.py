"""Choosing max_tokens by device memory."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from tiny_models import VOCABULARY, dictionary

from fairseq_sharing import flags
from fairseq_sharing.description.fit import LENGTH, USABLE, fit_max_tokens
from fairseq_sharing.description.step_memory import TrainingStep
from fairseq_sharing.errors import SharingError


@pytest.fixture
def data(tmp_path):
    (tmp_path / "bin").mkdir()
    dictionary().save(str(tmp_path / "bin" / "dict.en.txt"))
    return tmp_path


def config(**changes):
    train = {"arch": "transformer_sharing_tiny", "encoder_layers": 2, "decoder_layers": 2, "optimizer": "adam"}
    return OmegaConf.create({"tokens_per_batch": 9600, "train": {**train, "max_tokens": 64}, **changes})


@pytest.mark.parametrize(
    ("room", "devices", "chosen"), [(1_000, 1, 960), (1_000, 2, 960), (5_000, 2, 4800), (50, 1, 32)]
)
def test_the_largest_part_of_the_batch_that_fits_is_taken(data, room, devices, chosen):
    step = TrainingStep(flags.parse(config().train), VOCABULARY, "cuda")
    memory = int(1.001 * step.count(room, LENGTH).peak / USABLE)
    fitted = fit_max_tokens(config(), devices, memory, data)
    assert fitted.train.max_tokens == chosen
    assert fitted.tokens_per_batch == 9600
    assert config().train.max_tokens == 64, "the configuration itself stays"


@pytest.mark.parametrize(
    ("changes", "devices", "memory", "message"),
    [
        (
            {"tokens_per_batch": None},
            1,
            2**40,
            "--fit-memory: needs tokens_per_batch, a multiple of 1 devices, got None",
        ),
        ({}, 7, 2**40, "--fit-memory: needs tokens_per_batch, a multiple of 7 devices, got 9600"),
        ({}, 1, 2**10, "no max_tokens of at least 32 that divides 9600 fits; change tokens_per_batch"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(data, changes, devices, memory, message):
    with pytest.raises(SharingError) as caught:
        fit_max_tokens(config(**changes), devices, memory, data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
