"""Configurations: composed from base, experiment and overrides, and refused in one line when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose, fairseq_arguments, tokens_per_batch, update_freq
from fairseq_sharing.layer_map import STACKS
from fairseq_sharing.resources import configs_dir


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "small.yaml").write_text(
        "dataset: toy\ntrain:\n  lr: 0.1\n  max_tokens: 100\n  dropout: 0.3\n"
    )
    (tmp_path / "toy").mkdir()
    file = tmp_path / "toy" / "mine.yaml"
    file.write_text("base: ../base/small.yaml\ntrain:\n  dropout: 0.1\n")
    return file


def test_experiment_overrides_base_and_command_line_overrides_both(experiment):
    config = compose(experiment, ["train.lr=0.5", "train.arch=transformer_sharing", "seed=7"])
    assert OmegaConf.to_container(config) == {
        "seed": 7,
        "train": {"lr": 0.5, "max_tokens": 100, "dropout": 0.1, "arch": "transformer_sharing"},
        "evaluate": {},
        "run": "mine",
        "dataset": "toy",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "override 'train.lr': must be key=value"),
        ("=3", "override '=3': must be key=value"),
        ("trian.lr=3", "override: unknown key 'trian'; allowed: run, dataset,"),
        ("base=x.yaml", "override: unknown key 'base'"),
        ("train.lr=[1,2", "override 'train.lr=[1,2'"),
        ("evaluate.beams=4", "evaluate: unknown key 'beams'; allowed: average_last, beam"),
        ("seed=one", "seed: must be a whole number from 0, got 'one'"),
        ("train=3", "override: train: must be a mapping, got 3"),
        ("train.max_epoch=ten", "train.max_epoch: must be a whole number from 0, got 'ten'"),
        ("train.save_dir=x", "train.save_dir: is set by the run directory"),
        ("train.seed=3", "train.seed: is set by the top-level key seed"),
        ("run=${nothing}", "nothing"),
    ],
)
def test_bad_override_is_one_line_that_names_it(experiment, override, message):
    with pytest.raises(SharingError) as error:
        compose(experiment, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: toy\nmodel: {}\n", "unknown key 'model'; allowed: base, run"),
        ("base: nowhere.yaml\n", "base: nowhere.yaml: no such file"),
        ("base: mine.yaml\n", "base leads back to itself"),
        ("train: {}\n", "dataset: missing"),
        ("dataset: toy\ntrain: [1]\n", "train: must be a mapping, got [1]"),
        ("a: [\n", "not readable as YAML"),
        ("- just\n- words\n", "must be a mapping"),
    ],
)
def test_bad_file_is_one_line_that_names_it(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SharingError, match=r"mine\.yaml") as error:
        compose(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_configuration_names_both_places():
    with pytest.raises(SharingError, match=r"configuration nowhere\.yaml: no such file, here or in .*configs"):
        compose("nowhere.yaml")


@pytest.mark.parametrize("name", ["toy/vanilla.yaml", "configs/toy/vanilla.yaml", "toy/vanilla"])
def test_own_configuration_is_found_from_any_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert compose(name).run == "vanilla"


def test_values_become_flags():
    train = {"arch": "transformer_sharing", "share_all_embeddings": True, "cpu": False, "x": None, "lr": 1e-7}
    train |= {"adam_betas": "(0.9, 0.98)", "layers": [1, 2], "eval_bleu_args": {"beam": 5}}
    assert fairseq_arguments(train) == [
        *("--arch", "transformer_sharing", "--share-all-embeddings", "--lr", "1e-07"),
        *("--adam-betas", "(0.9, 0.98)", "--layers", "1", "2", "--eval-bleu-args", '{"beam": 5}'),
    ]


def test_update_freq_keeps_the_batch_over_devices(experiment):
    config = compose(experiment, ["tokens_per_batch=800"])
    assert [update_freq(config, devices) for devices in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert tokens_per_batch(config, 4) == 800
    assert tokens_per_batch(compose(experiment, ["train.update_freq=3"]), 2) == 600


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        (
            ["tokens_per_batch=800"],
            3,
            "tokens_per_batch=800 is no multiple of train.max_tokens=100 x 3 devices",
        ),
        (["tokens_per_batch=800", "train.update_freq=2"], 1, "both set"),
        (["tokens_per_batch=800", "train.max_tokens=null"], 1, "needs train.max_tokens"),
        (["tokens_per_batch=many"], 1, "tokens_per_batch=many"),
    ],
)
def test_batch_that_cannot_be_made_is_refused(experiment, overrides, devices, message):
    with pytest.raises(SharingError) as error:
        update_freq(compose(experiment, overrides), devices)
    assert message in str(error.value)


# Folders of configurations that are not named after their data.
STUDIES = {"changing_sharing": "multi30k", "precision": "multi30k"}
EXPERIMENTS = sorted(file for file in configs_dir().glob("*/*.yaml") if file.parent.name != "base")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_experiment_composes_and_says_how_to_launch_it(file):
    config = compose(file)
    assert config.dataset == STUDIES.get(file.parent.name, file.parent.name)
    assert config.run == file.stem
    header = file.read_text().split("base:")[0]
    assert f"fairseq-sharing train configs/{file.parent.name}/{file.name}" in header
    for word in ("devices:", "expected:", "hours", "score:", "source:"):
        assert word in header, f"{file}: its comment must state {word}"


PAPER_ROWS = ["vanilla", "admin", "universal_n6", "universal_n12", "vanilla_big"]
PAPER_ROWS += [f"{strategy}_n{n}" for strategy in ("sequence", "cycle", "cycle_rev") for n in (12, 18)]
SIZES = ["embed_dim", "ffn_embed_dim", "attention_heads", "layers"]
ROW_CHANGES = {"sharing", "unique_layers", "admin"} | {f"{s}_{size}" for s in ("encoder", "decoder") for size in SIZES}


@pytest.mark.parametrize("folder", ["wmt16_en_de", "news_commentary", "news_commentary_8k"])
def test_every_table_has_the_rows_of_the_paper_which_differ_in_the_model_only(folder):
    found = {file.stem for file in configs_dir().joinpath(folder).glob("*.yaml")}
    assert found >= set(PAPER_ROWS)
    vanilla = compose(f"{folder}/vanilla.yaml")
    for row in PAPER_ROWS:
        config = compose(f"{folder}/{row}.yaml")
        differing = {key for key in {*config.train, *vanilla.train} if config.train.get(key) != vanilla.train.get(key)}
        assert differing <= ROW_CHANGES, f"{row}: {differing - ROW_CHANGES}"
        assert config.tokens_per_batch == vanilla.tokens_per_batch
        assert (config.train.get("admin") == "profile") == (row == "admin" or config.train.encoder_layers > 6)
        lenpens = {"newstest2014": 0.6, "newstest2014_cleaned": 0.6 if folder == "wmt16_en_de" else None}
        assert config.evaluate.test_lenpen == lenpens


def test_the_batch_of_the_paper_is_that_of_four_devices_and_32_steps():
    config = compose("wmt16_en_de/vanilla.yaml")
    assert config.tokens_per_batch == 3584 * 4 * 32
    assert [update_freq(config, devices) for devices in (1, 2, 4, 8, 32, 128)] == [128, 64, 32, 16, 4, 1]


def test_shared_rows_differ_from_vanilla_in_sharing_and_depth_only():
    allowed = {"sharing", "unique_layers", "encoder_layers", "decoder_layers", "admin"}
    # Rows with expert banks differ in what their layers are, too; never in the recipe.
    banks = {
        "arch",
        "criterion",
        "ffn_entropy",
        "attention_entropy",
        "entropy_scope",
        "log_expert_usage",
        "head_dim",
        "fast",
    }
    banks |= {"expert_dim", "ffn_top_k", "attention_experts", "attention_top_k"}
    banks |= {f"{s}_{n}" for s in STACKS for n in ("attention_heads", "ffn_embed_dim", "ffn_experts")}
    for dataset in ("toy", "multi30k"):
        vanilla = compose(f"{dataset}/vanilla.yaml").train
        for file in configs_dir().joinpath(dataset).glob("*.yaml"):
            train = compose(file).train
            differing = {key for key in {*train, *vanilla} if train.get(key) != vanilla.get(key)}
            permitted = allowed | banks if "moeut" in train.arch else allowed
            assert differing <= permitted, f"{file}: {differing - permitted} differ from vanilla"


def test_rows_of_changing_sharing_differ_in_sharing_and_schedule_only():
    allowed = {"sharing", "unique_layers", "task", "max_epoch"}
    vanilla = compose("changing_sharing/vanilla.yaml").train
    for file in configs_dir().joinpath("changing_sharing").glob("*.yaml"):
        train = compose(file).train
        differing = {key for key in {*train, *vanilla} if train.get(key) != vanilla.get(key)} - allowed
        schedule = ("sharing_schedule", "unshare_", "dynamic_", "freeze_pattern_at")
        assert all(key.startswith(schedule) for key in differing), f"{file}: {differing}"
