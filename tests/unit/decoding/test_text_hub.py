"""from_pretrained with a run directory: the text of ``translate``, without further arguments."""

from __future__ import annotations

import json
import shutil

import pytest
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf
from sharing_cases import BY_NAME
from tiny_models import make_trainer, perturb, save

from fairseq_sharing import Translator
from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

LINES = ["w5 w6.", "", "w7 w8, w9 w5", "unheard-of ¡w6!", "w5\u2028w6.", " ".join(["w5"] * 70)]
SEARCH = {"beam": 3, "lenpen": 0.6, "max_len_b": 9}


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """Make a run directory with two epochs, and its prepared data."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data"
    shutil.copytree(data_dir, data / "bin")
    tokenizer = {"name": "moses", "aggressive_dashes": True, "escape": True}
    manifest = {"source_lang": "en", "target_lang": "de", "tokenizer": tokenizer, "subword": {"name": "none"}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    path = folder / "cycle-seed1"
    (path / "checkpoints").mkdir(parents=True)
    OmegaConf.save({"evaluate": {"average_last": 2}}, path / "config.yaml")
    (path / "run.json").write_text(json.dumps({"data": str(data), "source_lang": "en", "target_lang": "de"}))
    for epoch, seed in ((1, 3), (2, 4)):
        trainer = make_trainer(data_dir, BY_NAME["cycle"], "pre")
        perturb(trainer.model, seed)
        save(trainer, path / "checkpoints" / f"checkpoint{epoch}.pt")
    return path


def test_a_run_directory_is_enough_and_gives_the_text_of_translate(run, caplog):
    expected = Translator(run, threads=1).translate(LINES, **SEARCH)
    assert [bool(text) for text in expected] == [bool(line) for line in LINES]
    caplog.clear()
    hub = TransformerSharingModel.from_pretrained(str(run))
    assert hub.translate(LINES, **SEARCH) == expected
    assert hub.translate(LINES[2], **SEARCH) == expected[2]
    assert "70 subwords; the model reads only the first 63" in caplog.text


def test_a_checkpoint_of_the_run_can_be_named(run):
    file = "checkpoints/checkpoint1.pt"
    expected = Translator(run / file, data=run.parent / "data", threads=1).translate(LINES, **SEARCH)
    with pytest.raises(SharingError, match=r"checkpoint1\.pt: no manifest\.json with its text preparation"):
        # The checkpoint was trained without prepare.
        TransformerSharingModel.from_pretrained(str(run), file)
    hub = TransformerSharingModel.open_run(str(run), file, run.parent / "data")
    assert hub.translate(LINES, **SEARCH) == expected != Translator(run, threads=1).translate(LINES, **SEARCH)


def test_other_calls_are_those_of_fairseq(run, data_dir):
    path = str(run / "checkpoints")
    ours, stock = (
        model.from_pretrained(path, "checkpoint1.pt", str(data_dir))
        for model in (TransformerSharingModel, TransformerModel)
    )
    assert type(ours) is type(stock)
    assert ours.translate("w5 w6", **SEARCH) == stock.translate("w5 w6", **SEARCH)
    with pytest.raises(FileNotFoundError, match=r"dict\.en\.txt"):
        TransformerSharingModel.from_pretrained(path, "checkpoint1.pt")
