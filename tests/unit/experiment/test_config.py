"""Configurations: composition of base, experiment and overrides, and one-line errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fairseq_sharing import flags
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import BadKeyError, compose, find_study, tokens_per_batch, update_freq
from fairseq_sharing.experiment.layers import check_name
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
        ("evaluate.beams=4", "evaluate: unknown key 'beams'; allowed: average_last, engine, beam"),
        ("seed=one", "seed: must be a whole number from 0, got 'one'"),
        ("train=3", "override: train: must be a mapping, got 3"),
        ("train.max_epoch=ten", "train.max_epoch: must be a whole number from 0, got 'ten'"),
        ("train.save_dir=x", "train.save_dir: is set by the run directory"),
        ("train.seed=3", "train.seed: is set by the top-level key seed"),
        ("run=${nothing}", "nothing"),
        ("train.lr=???", "override: train.lr: '???'; allowed: a value"),
        ("seed=???", "seed: '???'; allowed: a value"),
        ("train=${train}", "override: train: must be a mapping, got ${train}"),
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
        ("base: ${nothing}\n", "base: ${nothing}: no such file"),
        ("base: ???\n", "base: '???'; allowed: a value"),
        ("dataset: toy\ntrain: {lr: '???'}\n", "train.lr: '???'; allowed: a value"),
        ("rows: {from: '${nothing}'}\ndata: toy\nseeds: [1]\n", "Interpolation key 'nothing' not found"),
        ("rows: {a: {train: '???'}}\ndata: toy\nseeds: [1]\n", "rows.a.train: '???'; allowed: a value"),
        ("rows: ???\ndata: toy\nseeds: [1]\n", "rows: '???'; allowed: a value"),
        ("base: mine.yaml\n", "base: circular; allowed: bases that do not lead back to this file"),
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


def test_a_value_may_refer_to_another_layer(experiment):
    config = compose(
        experiment, ["seed=7", "train.max_epoch=${seed}", "train.lr=${train.dropout}"], check=lambda *_: None
    )
    assert (config.train.max_epoch, config.train.lr) == (7, 0.1)


def test_missing_configuration_names_both_places():
    with pytest.raises(
        SharingError, match=r"configuration nowhere\.yaml: no such file in the current directory or .*configs"
    ):
        compose("nowhere.yaml")


@pytest.mark.parametrize("name", ["studies/toy.yaml", "configs/studies/toy.yaml", "studies/toy", "toy"])
def test_own_configuration_is_found_from_any_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert compose(name, ["row=vanilla"]).run == "vanilla"


TRANSLATION = {"task": "translation", "arch": "transformer_sharing_tiny", "optimizer": "adam"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("share_all_embeddings", True, ["--share-all-embeddings"]),
        ("share_all_embeddings", False, []),
        ("left_pad_source", True, []),
        ("left_pad_source", False, ["--left-pad-source"]),
        ("dropout", None, []),
        ("lr", 1e-7, ["--lr", "1e-07"]),
        ("lr", [0.001], ["--lr", "0.001"]),
        ("update_freq", [2, 1], ["--update-freq", "2,1"]),
        ("adam_betas", [0.9, 0.98], ["--adam-betas", "0.9,0.98"]),
        ("adam_betas", "(0.9, 0.98)", ["--adam-betas", "(0.9, 0.98)"]),
        ("layer_map", [0, 1, 1, 0], ["--layer-map", "0,1,1,0"]),
        ("valid_subset", ["valid", "valid1"], ["--valid-subset", "valid,valid1"]),
        ("eval_bleu_args", {"beam": 5}, ["--eval-bleu-args", '{"beam": 5}']),
        ("eval_bleu_remove_bpe", True, ["--eval-bleu-remove-bpe"]),
        ("eval_bleu_remove_bpe", "sentencepiece", ["--eval-bleu-remove-bpe", "sentencepiece"]),
        ("act", False, ["--act", "off"]),  # YAML parses off as false
        ("max_sentences", 8, ["--max-sentences", "8"]),
        ("restore_file", "--user-dir=x", ["--restore-file=--user-dir=x"]),
    ],
)
def test_values_become_flags(key, value, words):
    assert flags.words({**TRANSLATION, key: value})[6:] == words


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("left_pad_source", True), ("left_pad_source", False), ("share_all_embeddings", True)),
        *(("update_freq", [2, 1]), ("lr", [0.001, 0.0005]), ("max_tokens", 100), ("sharing_scope", "ffn")),
    ],
)
def test_fairseq_reads_the_value_that_the_block_says(key, value):
    assert getattr(flags.parse({**TRANSLATION, key: value}), key) == value


def test_lists_of_text_are_spelled_as_each_flag_reads_them():
    multilingual = {"task": "translation_multi_simple_epoch", "arch": "transformer", "langs": ["en", "de"]}
    args = flags.parse({**multilingual, "lang_pairs": ["en-de", "de-en"], "sampling_weights": {"en-de": 0.5}})
    assert (args.langs, args.lang_pairs, args.sampling_weights) == (["en", "de"], "en-de,de-en", {"en-de": 0.5})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.sharring=none", "override: train.sharring: unknown key; nearest: sharing; allowed: the flags of"),
        ("train.user_di=x", "override: train.user_di: unknown key; allowed: the flags of fairseq-train"),
        ("train.help=true", "override: train.help: unknown key"),
        ("train.admn=null", "override: train.admn: unknown key; nearest: admin"),
        ("train.sharing=cycel", "override: train.sharing: --sharing must be one of none, universal, sequence, cycle,"),
        ("train.arch=transformer_sharin", "override: train.arch: transformer_sharin; allowed: transformer_sharing,"),
        ("train.optimizer=adm", "override: train.optimizer: adm; allowed: adadelta, adafactor, adagrad, adam, "),
        ("train.precision=fp8", "override: train.precision: fp8; allowed: fp32, bf16"),
        ("train.encoder_layers=two", "override: train.encoder_layers: two; allowed: a whole number"),
        ("train.encoder_layers=2.5", "override: train.encoder_layers: 2.5; allowed: a whole number"),
        ("train.encoder_layers=[2,2]", "override: train.encoder_layers: [2, 2]; allowed: a whole number"),
        ("train.dropout=false", "override: train.dropout: false; allowed: a number"),
        ("train.lr=.nan", "override: train.lr: nan; allowed: values of --lr of fairseq-train, for example [0.5, 1]"),
        (
            "train.update_freq=1.5",
            "override: train.update_freq: 1.5; allowed: values of --update-freq of fairseq-train",
        ),
        ("train.update_freq=[]", "override: train.update_freq: []; allowed: values of --update-freq of fairseq-train"),
        ("train.dropout=inf", "override: train.dropout: inf; allowed: a number"),
        ("train.clip_norm=.nan", "override: train.clip_norm: nan; allowed: a number"),
        ("train.arch=null", "override: train.arch: missing; allowed: an architecture of fairseq or of this package"),
        ("train.fast=1", "override: train.fast: 1; allowed: true, false"),
        ("train.restore_file=true", "override: train.restore_file: true; allowed: text or a number"),
        ("train.max_sentences=8", "override: train.max_sentences: the same flag as train.batch_size; allowed: one"),
        ("train.lr_scheduler=sine", "override: train.lr_scheduler: sine; allowed: "),
    ],
)
def test_a_train_block_is_checked_against_fairseqs_parser(experiment, override, message):
    arch = "train={arch: transformer_sharing_tiny, batch_size: 4}"
    with pytest.raises(SharingError) as error:
        compose(experiment, [arch, override], check=flags.check)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_switch_that_an_architecture_turns_on_cannot_be_turned_off(experiment):
    arch = "train.arch=transformer_lm_sharing_wiki103"
    overrides = ["train.task=language_modeling", arch, "train.tie_adaptive_weights=false"]
    with pytest.raises(SharingError) as error:
        compose(experiment, overrides, check=flags.check)
    assert str(error.value) == (
        "override: train.tie_adaptive_weights: false; --arch transformer_lm_sharing_wiki103 or another flag sets it to "
        "true, and fairseq-train has no flag to undo this"
    )


@pytest.mark.parametrize("place", ["base/small.yaml", "toy/mine.yaml"])
def test_a_wrong_key_is_reported_with_the_file_that_has_it(experiment, place):
    file = experiment.parent.parent / place
    file.write_text(file.read_text() + "  arch: transformer_sharing_tiny\n  unique-layer: 3\n")
    with pytest.raises(SharingError, match=rf"/{place}: train.unique_layer: unknown key; nearest: unique_layers"):
        compose(experiment, check=flags.check)


def test_null_removes_a_key_that_another_architecture_has(experiment):
    overrides = ["train={arch: transformer_moeut_tiny, dropout: null, max_tokens: 10}"]
    small = experiment.parent.parent / "base" / "small.yaml"
    small.write_text(small.read_text() + "  fast: true\n")
    with pytest.raises(SharingError, match=r"small\.yaml: train\.fast: "):
        compose(experiment, overrides, check=flags.check)
    assert compose(experiment, [*overrides, "train.fast=null"], check=flags.check).train.fast is None


@pytest.mark.parametrize(
    ("block", "key", "message"),
    [
        (
            {"criterion": "label_smoothed_cross_entropy_with_teacher"},
            "criterion",
            "--criterion label_smoothed_cross_entropy_with_teacher requires --teacher CHECKPOINT",
        ),
        (
            {"criterion": "label_smoothed_cross_entropy_with_teacher", "teacher": "x", "kd_alpha": 2},
            "kd_alpha",
            "--kd-alpha must be between 0 and 1, got 2.0",
        ),
        (
            {"criterion": "label_smoothed_cross_entropy_with_ponder"},
            "criterion",
            "--criterion label_smoothed_cross_entropy_with_ponder requires a model with ACT; "
            "allowed: --act encoder, decoder, both",
        ),
        (
            {"criterion": "label_smoothed_cross_entropy_with_ponder", "act": "both", "ponder_weight": -1},
            "ponder_weight",
            "--ponder-weight must be at least 0, got -1.0",
        ),
        (
            {"criterion": "moe_cross_entropy"},
            "criterion",
            "--criterion moe_cross_entropy requires a model with expert banks; "
            "allowed: --arch transformer_moeut, transformer_lm_moeut or one of their sizes",
        ),
        (
            {"criterion": "moe_cross_entropy", "arch": "transformer_moeut", "ffn_entropy": -1},
            "ffn_entropy",
            "--ffn-entropy must be at least 0, got -1.0; nearest: 0",
        ),
    ],
)
def test_options_of_criterions_are_checked_before_the_training(block, key, message):
    with pytest.raises(BadKeyError) as error:
        flags.parse({**TRANSLATION, **block})
    assert (error.value.key, str(error.value)) == (key, f"train.{key}: {message}")


@pytest.mark.parametrize("key", ["adam_betas", "update_freq", "adaptive_softmax_cutoff"])
def test_no_code_of_a_configuration_is_run(tmp_path, key):
    code = f"__import__('pathlib').Path('{tmp_path}/run').touch()"
    with pytest.raises(SharingError, match=f"train.{key}: __import__"):
        flags.words({**TRANSLATION, key: code})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {user-dir: x}", "train.user_dir: is set by the run directory, not here"),
        ("train: {user_dir: x, user-dir: y}", "train.user_dir: given twice, with dashes and underscores"),
        ("train: {--user-dir: x}", "train.--user-dir: must not start with a dash; nearest: user_dir"),
        ("evaluate: {-beam: 4}", "evaluate.-beam: must not start with a dash; nearest: beam"),
        ("evaluate: {max-len-c: 4}", "evaluate: unknown key 'max_len_c'; allowed: "),
        *(
            (f"train: {{{key}: 1}}", "is set by --devices, --nodes and --master, not here")
            for key in ("distributed-rank", "local_rank", "device-id", "nprocs_per_node", "distributed_init_method")
        ),
    ],
)
@pytest.mark.parametrize("by", ["file", "override"])
def test_no_spelling_gets_around_what_is_refused(tmp_path, text, message, by):
    file = tmp_path / "mine.yaml"
    block, _, mapping = text.partition(": ")
    file.write_text(f"dataset: toy\n{text if by == 'file' else ''}\n")
    with pytest.raises(SharingError) as error:
        compose(file, [f"{block}={mapping}"] if by == "override" else [])
    assert message in str(error.value)


def test_dashes_and_underscores_are_one_key(experiment):
    config = compose(experiment, ["train.max-tokens=7", "evaluate.max-len-b=9"])
    assert (config.train.max_tokens, config.evaluate.max_len_b) == (7, 9)
    assert "max-tokens" not in config.train


@pytest.mark.parametrize("key", ["run", "dataset"])
@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".hidden", "-x", "a:b", "a b"])
def test_names_that_become_parts_of_paths_are_one_segment(experiment, key, name):
    with pytest.raises(SharingError) as error:
        compose(experiment, [f"{key}='{name}'"])
    assert f"{key}: '{name}'; allowed: letters, digits and . _ -" in str(error.value)
    assert check_name("größe_2.1-a", key) == "größe_2.1-a"


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
            "tokens_per_batch=800: not a multiple of train.max_tokens=100 x 3 devices",
        ),
        (["tokens_per_batch=800", "train.update_freq=2"], 1, "tokens_per_batch and train.update_freq: both are set"),
        (["tokens_per_batch=800", "train.max_tokens=null"], 1, "needs train.max_tokens"),
        (["tokens_per_batch=many"], 1, "tokens_per_batch=many"),
    ],
)
def test_batch_that_cannot_be_made_is_refused(experiment, overrides, devices, message):
    with pytest.raises(SharingError) as error:
        update_freq(compose(experiment, overrides), devices)
    assert message in str(error.value)


STUDIES = sorted(file.stem for file in configs_dir().joinpath("studies").glob("*.yaml"))
ROWS = [(study, row) for study in STUDIES for row in find_study(study).rows]


@pytest.mark.parametrize(("study", "row"), ROWS)
def test_every_row_of_every_study_composes(study, row):
    # The map of dlt_final is that of another run.
    overrides = ["train.layer_map='0,1,1,0,1,0'"] if row == "dlt_final" else []
    config = compose(study, [f"row={row}", *overrides], check=flags.check)
    assert not {"source_lang", "target_lang"} & set(config.train), "languages are those of the data"
    assert (config.study, config.run, config.dataset) == (study, row, find_study(study).data.name)
    assert "baseline" not in config.evaluate, "the report compares rows"


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_states_its_question_and_cost(study):
    header = configs_dir().joinpath("studies", f"{study}.yaml").read_text().split("question:")[0]
    for word in ("launch:", "devices:", "expected:"):
        assert word in header, f"{study}: its comment must state {word}"
    assert find_study(study).question.endswith(("?", "strategies.", "them."))
    launch = re.search(r"launch:   (.*)", header)[1]
    assert study in launch or study in ("toy", "wmt16_en_de"), launch


@pytest.mark.parametrize("recipe", sorted(configs_dir().joinpath("recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_states_its_source(recipe):
    comment = recipe.read_text().split("\nbase:")[0].split("\ndataset:")[0]
    assert any(word in comment for word in ("Source:", "Size:", "Chosen by trial", "all ours")), comment


PAPER_ROWS = ["vanilla", "admin", "universal_n6", "universal_n12", "vanilla_big"]
PAPER_ROWS += [f"{strategy}_n{n}" for n in (12, 18) for strategy in ("sequence", "cycle", "cycle_rev")]
SIZES = ["embed_dim", "ffn_embed_dim", "attention_heads", "layers"]
ROW_CHANGES = {"sharing", "unique_layers", "admin"} | {f"{s}_{size}" for s in ("encoder", "decoder") for size in SIZES}
WIDE = {"universal_n6", "universal_n12", "vanilla_big"}


@pytest.mark.parametrize("study", ["wmt16_en_de", "news_commentary", "news_commentary_cpu"])
def test_every_study_has_the_rows_of_the_paper_which_differ_only_in_the_model(study):
    assert list(find_study(study).rows) == PAPER_ROWS
    vanilla = compose(study, ["row=vanilla"])
    for row in PAPER_ROWS:
        config = compose(study, [f"row={row}"])
        differing = {key for key in {*config.train, *vanilla.train} if config.train.get(key) != vanilla.train.get(key)}
        assert differing <= ROW_CHANGES, f"{row}: {differing - ROW_CHANGES}"
        assert config.tokens_per_batch == vanilla.tokens_per_batch
        assert (config.train.get("admin") == "profile") == (row == "admin" or config.train.encoder_layers > 6)
        for size in ("embed_dim", "ffn_embed_dim", "attention_heads"):
            wide, plain = config.train[f"encoder_{size}"], vanilla.train[f"encoder_{size}"]
            assert wide == plain * (2 if row in WIDE else 1), f"{row}: {size}"
        lenpens = {"newstest2014": 0.6, "newstest2014_cleaned": 0.6 if study == "wmt16_en_de" else None}
        assert config.evaluate.test_lenpen == lenpens


def test_the_batch_of_the_paper_is_that_of_four_devices_and_32_steps():
    config = compose("wmt16_en_de", ["row=vanilla"])
    assert config.tokens_per_batch == 3584 * 4 * 32
    assert [update_freq(config, devices) for devices in (1, 2, 4, 8, 32, 128)] == [128, 64, 32, 16, 4, 1]


def test_shared_rows_differ_from_vanilla_in_sharing_and_depth_only():
    allowed = {"sharing", "unique_layers", "encoder_layers", "decoder_layers", "admin"}
    # Rows with experts also differ in their layers, but never in the recipe.
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
    for study in ("toy", "multi30k", "moeut"):
        vanilla = compose(study, ["row=vanilla"]).train
        for row in find_study(study).rows:
            train = compose(study, [f"row={row}"]).train
            differing = {key for key in {*train, *vanilla} if train.get(key) != vanilla.get(key)}
            permitted = allowed | banks if "moeut" in train.arch else allowed
            assert differing <= permitted, f"{study} {row}: {differing - permitted} differ from vanilla"


def test_rows_of_changing_sharing_differ_in_sharing_and_schedule_only():
    allowed = {"sharing", "unique_layers", "task", "max_epoch"}
    vanilla = compose("changing_sharing", ["row=vanilla"]).train
    for row in find_study("changing_sharing").rows:
        train = compose("changing_sharing", [f"row={row}"]).train
        differing = {key for key in {*train, *vanilla} if train.get(key) != vanilla.get(key)} - allowed
        schedule = ("sharing_schedule", "unshare_", "dynamic_", "freeze_pattern_at")
        assert all(key.startswith(schedule) for key in differing), f"{row}: {differing}"
