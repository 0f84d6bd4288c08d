"""Exports of tiny models to Hugging Face, and comparisons of their logits with fairseq's."""

from __future__ import annotations

import os
import socket
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from tiny_models import EOS, PAD, arguments, dictionary, perturb

from fairseq_sharing.decoding import huggingface_export
from fairseq_sharing.decoding.huggingface_export import Exported, export
from fairseq_sharing.decoding.huggingface_library import import_transformers, quiet
from fairseq_sharing.decoding.model_files import ModelFiles

EXACT = 1e-5  # largest difference by rounding
CODE = {"trust_remote_code": True}

os.environ["HF_HUB_OFFLINE"] = "1"
import_transformers()


@pytest.fixture
def offline(monkeypatch, tmp_path_factory):
    """Let every use of the network fail, and cache the code of exported folders in a temporary folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def dictionary_of(words: int) -> Dictionary:
    made = Dictionary()
    for number in range(words - len(made)):
        made.add_symbol(f"w{number}")
    return made


def built(norm: str = "post", *, arch: str = "transformer_sharing", words: tuple[int, int] | None = None, **changes):
    """Build a model whose norms and biases are not 1 and 0, and its task; ``words`` are two sizes of dictionaries."""
    source, target = (dictionary_of(size) for size in words) if words else (dictionary(),) * 2
    task = SimpleNamespace(source_dictionary=source, target_dictionary=target)
    torch.manual_seed(1)
    args: Namespace = arguments(norm, arch, **changes)
    return perturb(models.build_model(args, task)).eval(), task


@contextmanager
def loading(monkeypatch, model: Any, task: Any):
    """Let exports find a model instead of a checkpoint."""
    with monkeypatch.context() as patched:
        patched.setattr(huggingface_export, "load_models", lambda files: ([model], task, None))
        yield ModelFiles("tiny", checkpoints=(Path("tiny"),), languages={"source": "en", "target": "de"})


def export_model(monkeypatch, model: Any, task: Any, folder: Path, **options) -> Exported:
    with loading(monkeypatch, model, task) as files:
        return export(files, folder, **options)


def load(folder: Path, **options):
    """Load an exported model as a user does, and demand that its file has exactly the weights that it uses."""
    from transformers import AutoModelForSeq2SeqLM

    with quiet():
        model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


def sentences(words: int, lengths: tuple[int, ...], seed: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.cat([torch.randint(4, words, (length,), generator=draw), torch.tensor([EOS])]) for length in lengths]


def padded(rows: list[torch.Tensor], left: bool) -> torch.Tensor:
    longest = max(map(len, rows))
    pads = [torch.full((longest - len(row),), PAD) for row in rows]
    return torch.stack([torch.cat([pad, row] if left else [row, pad]) for row, pad in zip(rows, pads, strict=True)])


@torch.no_grad()
def difference(ours: Any, theirs: Any, task: Any, lengths=(7, 5, 3, 1), left: bool = False) -> float:
    """Compare the logits of fairseq's model with those of Hugging Face's on a padded batch.

    Args:
        ours: fairseq's model, whose sources are padded on the left, as in its own commands.
        theirs: Hugging Face's model.
        task: the task with the dictionaries.
        lengths: numbers of words of the sentences.
        left: pad the sources of Hugging Face's model on the left too.
    """
    sources = sentences(len(task.source_dictionary), lengths)
    previous = [row.roll(1) for row in sentences(len(task.target_dictionary), lengths[::-1], seed=4)]
    decoder_inputs = padded(previous, left=False)
    wanted = ours(padded(sources, left=True), torch.tensor([len(row) for row in sources]), decoder_inputs)[0]
    inputs = padded(sources, left)
    mask = inputs.ne(PAD).long()
    found = theirs(input_ids=inputs, attention_mask=mask, decoder_input_ids=decoder_inputs, use_cache=False).logits
    assert found.shape == wanted.shape
    return float((found - wanted).abs()[decoder_inputs.ne(PAD)].max())
