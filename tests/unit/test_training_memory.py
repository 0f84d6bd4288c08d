"""The memory of a training, counted without storage: beside what a real forward pass keeps; and what fits in it."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import EOS, VOCABULARY, arguments, build, dictionary

from fairseq_sharing.errors import SharingError
from fairseq_sharing.training.memory import LENGTH, USABLE, fit_max_tokens, training_bytes

OPTIONS = {"sharing": "cycle", "unique_layers": 3, "dropout": 0.1}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_bytes_a_token_are_those_that_a_real_forward_pass_keeps(norm):
    model = build(norm, **OPTIONS).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    words = torch.randint(4, VOCABULARY, (4, LENGTH))
    words[:, -1] = EOS
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(words, torch.full((4,), LENGTH), words)[0].log_softmax(-1)
    real = sum(storage.nbytes() for storage in kept.values()) / words.numel() + 2 * 4 * VOCABULARY
    fixed, each = training_bytes(arguments(norm, **OPTIONS), VOCABULARY)
    assert real <= each <= 1.25 * real, "an upper bound, and a close one"
    assert fixed == 16 * sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def data(tmp_path):
    (tmp_path / "bin").mkdir()
    dictionary().save(str(tmp_path / "bin" / "dict.en.txt"))
    return tmp_path


def config(**changes):
    train = {"arch": "transformer_sharing_tiny", "encoder_layers": 2, "decoder_layers": 2, "optimizer": "adam"}
    return OmegaConf.create({"tokens_per_batch": 9600, "train": {**train, "max_tokens": 64}, **changes})


@pytest.mark.parametrize(
    ("room", "devices", "chosen"), [(1_000, 1, 960), (1_000, 2, 960), (5_000, 2, 4800), (50, 1, 50)]
)
def test_the_largest_part_of_the_batch_that_fits_is_taken(data, room, devices, chosen):
    from fairseq_sharing.description import model_arguments

    fixed, each = training_bytes(model_arguments(config().train), VOCABULARY)
    memory = int((fixed + (room + 0.5) * each) / USABLE)
    fitted = fit_max_tokens(config(), devices, memory, data)
    assert fitted.train.max_tokens == chosen
    assert fitted.tokens_per_batch == 9600
    assert config().train.max_tokens == 64, "the configuration itself stays"


@pytest.mark.parametrize(
    ("changes", "devices", "memory", "message"),
    [
        ({"tokens_per_batch": None}, 1, 2**40, "needs tokens_per_batch, a multiple of 1 devices; got None"),
        ({}, 7, 2**40, "needs tokens_per_batch, a multiple of 7 devices; got 9600"),
        ({}, 1, 2**10, "hold no 32 tokens or more that divide 9600: change tokens_per_batch"),
    ],
)
def test_what_fits_nowhere_is_refused_in_one_line(data, changes, devices, memory, message):
    with pytest.raises(SharingError) as caught:
        fit_max_tokens(config(**changes), devices, memory, data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
