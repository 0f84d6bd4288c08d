"""fairseq's own commands with only ``--user-dir fairseq_sharing``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from fairseq_processes import ENVIRONMENT, PLUGIN, ROOT, lines_by_kind, logged
from tiny_training import CYCLE_REV, LAYERS, SUBSETS

from fairseq_sharing.checkpoints.files import load_checkpoint

VANILLA = ["--arch", "transformer", *LAYERS]
SEQUENCE = ["--arch", "transformer_sharing", "--encoder-layers", "3", "--decoder-layers", "6"]
SEQUENCE += ["--encoder-sharing", "universal", "--decoder-sharing", "sequence", "--decoder-unique-layers", "3"]

# Runs modules like python -m, one after the other, because importing fairseq takes seconds.
RUN_EACH = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def call(command: list[object], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does and require success."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """A site directory with fairseq and with this package as pip installs it."""
    place = tmp_path_factory.mktemp("installed")
    source, site = place / "source", place / "site"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fairseq_sharing", "configs", "data-prep"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", site]
    call([sys.executable, "-m", "pip", "install", *flags, source], cwd=place)
    for name in ("fairseq", "fairseq_cli"):
        (site / name).mkdir()
        for file in Path(sysconfig.get_path("purelib"), name).iterdir():
            (site / name / file.name).symlink_to(file)
    return site


def test_fairseq_train_from_a_clone(tmp_path, train_words):
    """The program fairseq-train, run in the clone."""
    program = Path(sys.executable).with_name("fairseq-train")
    done = call([program, *train_words(tmp_path, "--max-update", "2", user_dir="fairseq_sharing")], cwd=ROOT)
    assert logged(done.stdout, "loss")[-1]["num_updates"] == "2"
    state = load_checkpoint(tmp_path / "checkpoint_last.pt")["model"]
    assert state["_extra_state"]["stacks"]["decoder"]["layer_map"] == [0, 1, 1, 0]


def test_fairseq_commands_from_an_installation(tmp_path, installed, train_words, data):
    """fairseq finds an installed package from any directory, without a path."""
    plugin = ["--user-dir", "fairseq_sharing"]
    train = ["fairseq_cli.train", *train_words("checkpoints", "--max-update", "2", user_dir="fairseq_sharing")]
    generate = ["fairseq_cli.generate", data, *plugin, "--path", "checkpoints/checkpoint_last.pt", "--cpu"]
    generate += ["--gen-subset", "test1", "--max-len-b", "5"]
    commands = json.dumps([[str(word) for word in words] for words in (train, generate)])
    done = call([sys.executable, "-P", "-c", RUN_EACH, commands], cwd=tmp_path, PYTHONPATH=str(installed))
    assert sorted(lines_by_kind(done.stdout)["H"]) == list(range(5))
    assert list((installed / "fairseq_sharing").glob("__pycache__/tying*.pyc")), "a different fairseq_sharing was used"


@pytest.mark.parametrize("subset", ["test", "test1"])
def test_generate_translates_every_sentence(trained, translate, corpus, subset):
    """Stock fairseq drops the remainder of a division by 8: it keeps 456 of 461 sentences, and 0 of 5."""
    translated = translate(trained / "checkpoint_last.pt", subset=subset)
    assert sorted(translated["H"]) == list(range(SUBSETS[subset]))
    source = (corpus / f"{subset}.en").read_text().splitlines()
    assert [translated["S"][number][0] for number in range(len(source))] == source


def test_validate_scores_every_sentence(trained, commands, data):
    done = commands.run(
        *("fairseq_cli.validate", data, "--path", trained / "checkpoint_last.pt", "--valid-subset", "test,test1,valid"),
        *("--user-dir", PLUGIN, "--task", "translation", "--max-tokens", "100000", "--cpu", "--log-format", "json"),
    )
    for subset in ("test", "test1", "valid"):
        (entry,) = logged(done.stdout, f"{subset}_bsz")
        # fairseq-validate reduces all batches at once, so this is the total number of sentences.
        assert float(entry[f"{subset}_bsz"]) == SUBSETS[subset]


def test_training_and_its_validation_see_every_sentence(tmp_path, train):
    done = train(tmp_path, "--max-epoch", "1", "--batch-size", "1000", "--update-freq", "64")
    (epoch,) = logged(done.stdout, "train_bsz")
    assert (epoch["train_num_updates"], float(epoch["train_bsz"])) == ("1", SUBSETS["train"])
    (valid,) = logged(done.stdout, "valid_bsz")
    assert float(valid["valid_bsz"]) * 2 == SUBSETS["valid"]


def test_interactive_and_from_pretrained_translate_as_generate_does(trained, translate, commands, corpus, tmp_path):
    path = trained / "checkpoint_last.pt"
    expected = translate(path)["H"]
    flags = ["--beam", "3", "--min-len", "5", "--max-len-b", "9"]
    done = commands.run(
        *("fairseq_cli.interactive", corpus / "bin", "--path", path, "--user-dir", PLUGIN, "--cpu", *flags),
        *("--input", corpus / "test1.en", "--buffer-size", "5", "--batch-size", "5"),
    )
    interactive = lines_by_kind(done.stdout)["H"]
    assert [interactive[n][1] for n in range(5)] == [expected[n][1] for n in range(5)]
    scores = [[float(hypotheses[n][0]) for n in range(5)] for hypotheses in (interactive, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)

    (tmp_path / "hub.py").write_text(f"""
import json
import fairseq
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel
hub = TransformerSharingModel.from_pretrained({str(trained)!r}, "checkpoint_last.pt", {str(corpus / "bin")!r})
layers = hub.models[0].decoder.layers
assert layers[0].fc1.weight is layers[3].fc1.weight and layers[1].fc1.weight is layers[2].fc1.weight
sentences = open({str(corpus / "test1.en")!r}).read().splitlines()
print(json.dumps(hub.translate(sentences, beam=3, min_len=5, max_len_b=9)))
""")
    done = commands.run("hub", cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == [expected[n][1] for n in range(5)]


def test_ensembles_of_models_with_different_maps(trained, tmp_path, train, translate):
    """The probability of each reference token is the mean over the two models."""
    train(tmp_path, "--max-update", "20", model=SEQUENCE)
    paths = [trained / "checkpoint_last.pt", tmp_path / "checkpoint_last.pt"]
    scored = [translate(path, "--score-reference")["P"] for path in (*paths, ":".join(map(str, paths)))]
    for number in range(SUBSETS["test1"]):
        one, other, both = (2.0 ** torch.tensor([float(s) for s in p[number][0].split()]) for p in scored)
        assert not torch.allclose(one, other, atol=1e-3)
        torch.testing.assert_close((one + other) / 2, both, atol=1e-4, rtol=1e-3)


def test_best_checkpoint_by_bleu_and_patience(tmp_path, train):
    done = train(
        tmp_path,
        *("--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}', "--best-checkpoint-metric", "bleu"),
        *("--maximize-best-checkpoint-metric", "--patience", "2", "--max-epoch", "9", "--lr", "1e-9"),
    )
    bleu = [float(entry["valid_bleu"]) for entry in logged(done.stdout, "valid_bleu")]
    assert len(bleu) == 3, "without learning, a patience of 2 ends training after the third epoch"
    assert "early stop since valid performance hasn't improved for last 2 runs" in done.stdout
    best = load_checkpoint(tmp_path / "checkpoint_best.pt")
    assert best["extra_state"]["best"] == pytest.approx(max(bleu), abs=0.01)


@pytest.mark.parametrize(("model", "owners"), [([*CYCLE_REV[:2], *LAYERS], [0, 1, 2, 3]), (CYCLE_REV, [0, 1])])
def test_finetuning_starts_from_a_vanilla_model(tmp_path, train, model, owners):
    """Fine-tune from a model with N layers without sharing, and from one whose M layers become the shared sets."""
    layers = ["--encoder-layers", str(len(owners)), "--decoder-layers", str(len(owners))]
    # Without the plugin, as a fairseq user has it.
    train(tmp_path / "vanilla", "--max-update", "2", model=["--arch", "transformer", *layers], user_dir=None)
    # In the folder of the new training, with a name that fairseq does not use.
    vanilla = tmp_path / "checkpoint_pretrained.pt"
    shutil.copy(tmp_path / "vanilla" / "checkpoint_last.pt", vanilla)
    # An update with a learning rate of 0 changes nothing.
    train(tmp_path, "--finetune-from-model", vanilla, "--max-update", "1", "--lr", "0", model=model)
    before = load_checkpoint(vanilla)["model"]
    trained = load_checkpoint(tmp_path / "checkpoint_last.pt")
    assert trained["optimizer_history"][-1]["num_updates"] == 1
    after = trained["model"]
    assert before.keys() - after.keys() <= {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    for key, value in after.items():
        if torch.is_tensor(value):
            assert torch.equal(value, before[key]), key


def test_hydra_train_trains_and_refuses_in_one_line(tmp_path, commands, data, translate):
    words = [f"common.user_dir={PLUGIN}", "common.cpu=true", "task=translation", f"task.data={data}", "optimizer=adam"]
    words += ["optimization.lr=[0.1]", "optimization.max_update=3", "dataset.batch_size=8"]
    words += ["criterion=cross_entropy", f"checkpoint.save_dir={tmp_path}", "+model._name=transformer_sharing_tiny"]
    commands.run("fairseq_cli.hydra_train", *words, "+model.sharing=universal", cwd=tmp_path)
    last = tmp_path / "checkpoint_last.pt"
    state = load_checkpoint(last)
    assert state["optimizer_history"][-1]["num_updates"] == 3
    assert state["model"]["_extra_state"]["stacks"]["decoder"]["layer_map"] == [0, 0]
    assert sorted(translate(last)["H"]) == list(range(SUBSETS["test1"]))

    done = commands.run("fairseq_cli.hydra_train", *words, "+model.sharing=none", status=None, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == (
        f"fairseq-hydra-train: error: {last}: the checkpoint's encoder has the layer map 0,0 (layer), but the options "
        "--encoder-layers and --sharing give 0,1 (layer); allowed: the options of its training, or "
        "--finetune-from-model with a vanilla checkpoint of 2 layers"
    )
    assert "Traceback" not in done.stdout + done.stderr
