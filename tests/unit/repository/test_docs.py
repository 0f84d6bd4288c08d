"""Every file, name, command, link and error message of the documentation exists, and its examples run."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from fairseq import models, options
from fairseq.models import transformer, transformer_lm
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.translation import TranslationTask
from scheduled_training import make_trainer, train
from tiny_models import build, dictionary

import fairseq_sharing
from fairseq_sharing import commands, flags, layer_map
from fairseq_sharing.commands import COMMANDS, main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose, find_study
from fairseq_sharing.flag_list import list_flags
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.models import presets
from fairseq_sharing.models.sharing_options import validate
from fairseq_sharing.preparation import toy
from fairseq_sharing.schedules.engine import Engine
from fairseq_sharing.schedules.schedule import Observation
from fairseq_sharing.studies.plan import StudyPlan

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "fairseq_sharing"
DOCS = {file.stem: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
FOLDERS = "docs|scripts|configs|tests|results|benchmarks|data-prep|fairseq_sharing"


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS[page], re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[tuple[str, str]]:
    """Return page and line of all shell commands of a program, without comments and redirections."""
    found = []
    for page in DOCS:
        joined = "\n".join(_blocks(page, "bash")).replace("\\\n", " ")
        lines = [line.partition("#")[0].partition(" <")[0].strip() for line in joined.splitlines()]
        found += [(page, line) for line in lines if line.startswith(program)]
    return found


def _quoted(page: str) -> list[str]:
    """Return the texts in backticks of a page, outside of its blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", DOCS[page], flags=re.MULTILINE | re.DOTALL))


# Files, links and names


def test_every_file_that_a_page_names_exists():
    for page in DOCS:
        new = [path for _, path, _ in _examples()] if page == "extending" else []
        new += ["data-prep/mine/README.md", "data-prep/mine/prepare.sh", "configs/recipes/"]
        for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", DOCS[page]):
            assert (ROOT / path).exists() or path in new, f"{page}: {path}"


def test_every_link_within_the_repository_leads_somewhere():
    for page, text in DOCS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = ROOT / "docs" / (path or f"{page}.md")
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in _anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def _anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings on GitHub."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_layers_of_the_architecture_are_those_of_the_contract():
    table = DOCS["architecture"].partition("| from top to bottom |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert [set(row) for row in rows] == [{name.strip() for name in layer.split("|")} for layer in layers]
    assert all((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() for row in rows for name in row)


def test_every_file_and_dotted_name_of_the_architecture_exists():
    files, names = [], []
    for quoted in _quoted("architecture"):
        if re.fullmatch(r"[\w./-]+\.(py|md|yaml|toml|sh)", quoted):
            files.append(quoted)
        elif re.fullmatch(r"[a-z_]\w*(\.\w+)+", quoted) and not quoted.endswith((".json", ".html")):
            names.append(quoted)
    assert len(files) >= 6
    assert len(names) >= 50
    for path in files:
        assert (ROOT / path).is_file() or (PACKAGE / path).is_file(), path
    for name in names:
        _find(name)


def _find(name: str) -> object:
    """Find a module, or a member of a module, by its name relative to the package."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if (PACKAGE / module.replace(".", "/")).is_dir() or (PACKAGE / f"{module.replace('.', '/')}.py").is_file():
            found: object = importlib.import_module(f"fairseq_sharing.{module}")
            for part in parts[end:]:
                found = getattr(found, part)
            return found
    raise AssertionError(f"{name}: no such module")


# Commands


@pytest.mark.parametrize(("page", "command"), _commands("fairseq-sharing "))
def test_command_parses_and_its_configuration_composes(page, command):
    _, name, *words = shlex.split(command)
    assert name in COMMANDS
    module = importlib.import_module(f"fairseq_sharing.commands.{name}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    args = parser.parse_args(words)
    if name in ("train", "describe"):
        compose(args.config, args.overrides)
    if name == "study" and args.study != "mine.yaml":
        find_study(args.study)


def test_every_flag_that_a_page_names_exists():
    known = {flag.name for group in list_flags() for flag in group.flags}
    for script in (ROOT / "scripts").glob("*.sh"):
        known |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", script.read_text(encoding="utf-8")))
    parsers = [options.get_training_parser(), options.get_generation_parser()]
    for name in COMMANDS:
        parsers.append(argparse.ArgumentParser())
        importlib.import_module(f"fairseq_sharing.commands.{name}").add_arguments(parsers[-1])
    for part in (
        transformer.TransformerModel,
        transformer_lm.TransformerLanguageModel,
        TranslationTask,
        LanguageModelingTask,
    ):
        parsers.append(argparse.ArgumentParser())
        part.add_args(parsers[-1])
    for parser in parsers:
        known |= set(parser._option_string_actions)
    for page in DOCS:
        named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]\b(?![*-])", " ".join(_quoted(page)))
        assert set(named) - known == set(), page


def test_act_block_is_accepted_by_fairseq_train():
    (block,) = _blocks("universal", "bash")
    _, _, *words = shlex.split(block.replace("\\\n", " "))
    config = compose(words[0], words[1:], check=flags.check)
    assert (config.train.act, config.train.admin) == ("both", "off" if isinstance(config.train.admin, str) else False)


# tests/integration/test_from_fairseq.py runs those of from_fairseq.md.
PARSED = [(page, command) for page, command in _commands("fairseq-train ") if " ... " not in command]


@pytest.mark.parametrize(("page", "command"), [found for found in PARSED if found[0] != "from_fairseq"])
def test_fairseq_train_command_parses_with_the_plugin(page, command):
    _, *words = shlex.split(command.replace("--user-dir fairseq_sharing", f"--user-dir {PACKAGE}"))
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    assert page == "distillation" or args.sharing_schedule in ("unshare", "dynamic")


def test_scripts_and_benchmarks_of_the_pages_exist():
    for page, command in [*_commands("bash "), *_commands("python -m ")]:
        words = shlex.split(command)
        path = words[1] if words[0] == "bash" else words[2].replace(".", "/") + ".py"
        assert (ROOT / path).is_file(), f"{page}: {command}"
    for page, text in DOCS.items():
        for module in re.findall(r"python -m (benchmarks[\w.]+)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{page}: {module}"


def test_single_experiment_is_the_row_of_the_study(tmp_path):
    (text,) = _blocks("reproducing", "yaml")
    file = tmp_path / "cycle_rev.yaml"
    file.write_text(text.replace("base: ", f"base: {ROOT / 'configs' / 'recipes'}/"))
    assert compose(file).train == compose("multi30k", ["row=cycle_rev"]).train


def test_study_of_the_page_is_checked_and_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = _blocks("studies", "yaml mine.yaml")
    Path("mine.yaml").write_text(text)
    plan = StudyPlan(find_study("mine.yaml"), "mine.yaml")
    plan.check()
    assert [run.directory.path.name for run in plan.runs][:4] == [
        *("vanilla-seed1", "sequence-seed1", "cycle-seed1", "vanilla-seed2")
    ]
    assert len(plan.runs) == 11
    assert plan.compose(plan.runs[2]).train.sharing == "cycle"


# Examples of extending.md


@cache
def _examples() -> list[tuple[str, str, str]]:
    """Return the blocks of extending.md that name a file: language, path and text."""
    return re.findall(r"^```(\w+) (\S+)\n(.*?)^```", DOCS["extending"], re.MULTILINE | re.DOTALL)


def _new_file(path: str) -> str:
    (text,) = [text for language, name, text in _examples() if name == path and language != "diff"]
    assert not (ROOT / path).exists()
    return text


def _edited(path: str) -> str:
    """Return a file of the repository with the edits of the page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    edits = [edit for language, name, edit in _examples() if name == path and language == "diff"]
    assert edits
    for edit in edits:
        lines = edit.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
        assert text.count(old) == 1, f"{path}: {old}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def load(tmp_path, monkeypatch) -> Callable[[str, str], ModuleType]:
    """Return a function that imports a text as a module until the test ends."""

    def load(name: str, text: str) -> ModuleType:
        file = tmp_path / f"{name.rpartition('.')[2]}.py"
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_new_strategy_gives_a_map_and_is_accepted_by_the_flag(load, monkeypatch):
    edited = load("edited_layer_map", _edited("fairseq_sharing/layer_map.py"))
    assert edited.make_layer_map("zigzag", 9, 3) == (0, 1, 2, 2, 1, 0, 0, 1, 2)
    words = ["data", "--arch", "transformer_sharing_tiny", "--sharing", "zigzag", "--unique-layers", "3"]
    words += ["--encoder-layers", "6", "--decoder-layers", "9"]
    with pytest.raises(SharingError, match="--sharing must be one of"):
        options.parse_args_and_arch(options.get_training_parser(), words)
    for name in ("STRATEGIES", "SHARING_CHOICES"):
        monkeypatch.setattr(layer_map, name, getattr(edited, name))
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    maps = {stack: sharing.layer_map for stack, sharing in validate(args).items()}
    assert maps == {"encoder": (0, 1, 2, 2, 1, 0), "decoder": (0, 1, 2, 2, 1, 0, 0, 1, 2)}
    model = build(sharing="zigzag", unique_layers=2, encoder_layers=5, decoder_layers=4)
    assert model.encoder.layers[4].fc1.weight is model.encoder.layers[0].fc1.weight
    assert model.encoder.layers[2].fc1.weight is model.encoder.layers[1].fc1.weight


def test_new_preset_sets_the_maps_of_components(load, monkeypatch):
    edited = load("edited_presets", _edited("fairseq_sharing/models/presets.py"))
    monkeypatch.setattr(presets, "PRESETS", edited.PRESETS)
    model = build(preset="half_attention", encoder_layers=4, decoder_layers=4)
    maps = {component.component: component.labels for component in model.sharing["decoder"].maps}
    assert maps["ffn"] == (0, 0, 0, 0)
    assert maps["self_attn"] == maps["encoder_attn"] == (0, 0, 1, 1)
    assert maps["layer_norm"] == (0, 1, 2, 3)


def test_new_schedule_unties_one_layer_at_a_time_in_a_training(load, data_dir):
    gradual = load("fairseq_sharing.schedules.gradual", _new_file("fairseq_sharing/schedules/gradual.py"))
    edited = load("edited_options", _edited("fairseq_sharing/schedules/options.py"))
    with pytest.raises(SharingError, match="--gradual-interval requires --sharing-schedule gradual, got none"):
        edited.read_options(Namespace(gradual_interval=5))
    given = edited.read_options(Namespace(sharing_schedule="gradual", gradual_interval=2))
    built = load("edited_build", _edited("fairseq_sharing/schedules/build.py"))
    schedule = built.build_schedule(given, {"decoder": StackSharing((0, 0, 0))})
    assert isinstance(schedule, gradual.Gradual)
    decision = schedule.decide(Observation(2, {"encoder": (0, 1), "decoder": (0, 1, 1)}, {}, lambda draw: 0.0))
    assert decision.maps == {"decoder": (0, 1, 2)}

    trainer = make_trainer(data_dir, "--sharing-schedule=unshare", "--unshare-at=99", sharing="universal")
    trainer.task.engine = Engine(
        schedule, trainer.get_model(), Namespace(**{**vars(given), "untied_moments": "inherit"})
    )
    train(trainer, 5)
    maps = {stack: sharing.layer_map for stack, sharing in trainer.get_model().sharing.items()}
    assert maps == {"encoder": (0, 0, 1, 2), "decoder": (0, 0, 1, 2)}


def test_new_model_shares_its_encoder_only(load, monkeypatch):
    for name in ("MODEL_REGISTRY", "MODEL_DATACLASS_REGISTRY", "ARCH_MODEL_REGISTRY", "ARCH_MODEL_NAME_REGISTRY"):
        monkeypatch.setattr(models, name, dict(getattr(models, name)))
    for name in ("ARCH_MODEL_INV_REGISTRY", "ARCH_CONFIG_REGISTRY"):
        monkeypatch.setattr(models, name, dict(getattr(models, name)))
    assert "encoder_sharing,  # noqa" in _edited("fairseq_sharing/__init__.py")
    load("fairseq_sharing.models.encoder_sharing", _new_file("fairseq_sharing/models/encoder_sharing.py"))
    model = build(arch="transformer_encoder_sharing", sharing="cycle", unique_layers=2)
    encoder, decoder = model.encoder.layers, model.decoder.layers
    assert encoder[2].fc1.weight is encoder[0].fc1.weight
    assert len({id(layer.fc1.weight) for layer in decoder}) == len(decoder)
    state = model.state_dict()
    assert "decoder.layers.2.fc1.weight" in state
    assert "encoder.layers.2.fc1.weight" not in state
    build(arch="transformer_encoder_sharing", sharing="cycle", unique_layers=2, seed=2).load_state_dict(state)
    with pytest.raises(SharingError, match="--encoder-layerdrop"):
        build(arch="transformer_encoder_sharing", sharing="universal", encoder_layerdrop=0.5)
    assert len(dictionary()) == model.encoder.embed_tokens.num_embeddings


def test_new_data_recipe_prepares(tmp_path, capsys):
    recipe = tmp_path / "mine" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(_new_file("data-prep/mine/recipe.yaml"))
    for name, pairs in toy.generate({"train": 60, "valid": 5, "test": 4}).items():
        for lang in ("en", "de"):
            (recipe.parent / f"{name}.{lang}").write_text("".join(f"{pair[lang]}\n" for pair in pairs))
    (command,) = [command for page, command in _commands("fairseq-sharing prepare data-prep/mine")]
    words = shlex.split(command)[1:]
    words[words.index("data-prep/mine/recipe.yaml")] = str(recipe)
    words[words.index("data/mine")] = str(tmp_path / "data")
    assert main([*words, "--workers", "1"]) == 0
    assert (tmp_path / "data" / "bin" / "train.en-de.en.bin").is_file()
    assert len((tmp_path / "data" / "bpe" / "test.de").read_text().splitlines()) == 4


def test_new_subcommand_runs_and_is_in_the_help(load, monkeypatch, capsys):
    load("fairseq_sharing.commands.map", _new_file("fairseq_sharing/commands/map.py"))
    edited = load("edited_commands", _edited("fairseq_sharing/commands/__init__.py"))
    monkeypatch.setattr(commands, "COMMANDS", edited.COMMANDS)
    assert main(["map", "cycle_rev", "6", "--unique-layers", "3"]) == 0
    assert capsys.readouterr().out == "0,1,2,2,1,0\n"
    assert main(["map", "cycle", "6"]) == 2
    assert "fairseq-sharing map: error: --unique-layers: missing; --sharing cycle needs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"^ +map +print the layer map of a strategy$", capsys.readouterr().out, re.MULTILINE)


def test_new_study_composes_and_is_accepted_by_fairseq_train(tmp_path):
    file = tmp_path / "depth.yaml"
    file.write_text(_new_file("configs/studies/depth.yaml"))
    study = find_study(file)
    assert (study.name, list(study.rows), study.seeds, study.baseline) == (
        "depth",
        ["n4", "n8", "n12"],
        (1, 2, 3),
        "n4",
    )
    config = compose(file, ["row=n12", "seed=2"], check=flags.check)
    assert (config.run, config.seed, config.dataset) == ("n12", 2, "multi30k")
    assert (config.train.sharing, config.train.unique_layers, config.train.encoder_layers) == ("cycle", 4, 12)
    assert config.train.max_epoch == 20


# Messages of faq.md


@cache
def _messages() -> list[str]:
    """Return the strings in the package's sources, with NUL in place of each value."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def _faq_messages() -> list[str]:
    section = DOCS["faq"].partition("## Messages of this package")[2].partition("\n## ")[0]
    return [
        quoted
        for heading in re.findall(r"^### (.*)$", section, re.MULTILINE)
        for quoted in re.findall("`(.*?)`", heading)
    ]


@pytest.mark.parametrize("message", _faq_messages())
def test_message_of_the_faq_is_one_of_the_package(message):
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert any(re.search(pattern, text, re.DOTALL) for text in _messages())


def test_faq_quotes_messages_and_links_to_threads():
    assert len(_faq_messages()) >= 15
    links = re.findall(r"\[([\w/-]+)#(\d+)\]\(https://github\.com/([\w.-]+/[\w.-]+)/issues/(\d+)\)", DOCS["faq"])
    assert len(links) >= 10
    for name, number, repository, linked in links:
        assert number == linked
        assert repository.endswith(name)


def test_package_is_the_one_of_the_repository():
    assert Path(fairseq_sharing.__file__).parent == PACKAGE


def test_numbers_of_decoding_are_the_measured_ones():
    measured = json.loads((ROOT / "results/speed/decoding.json").read_text(encoding="utf-8"))
    page, bleu = DOCS["decoding"], measured["bleu_of_fairseq_generate"]
    speed = {(row["engine"], row["load"]): row for row in measured["speed"]}
    for kind, name in (("float32", "fp32"), ("int8", "int8")):
        rows = [speed[f"CTranslate2 {kind}", load] for load in ("together", "one by one")]
        cells = [f"{row['sentences_per_second']} ({row['ratio']:.1f}x)" for row in rows]
        found = measured["agreement"][kind]
        difference = f"{found['bleu'] - bleu:+.2f}".replace("+0.00", "0.00")
        assert f"| CTranslate2, {name} | {' | '.join(cells)} | {found['same']:.1%} | {difference} |" in page


def test_numbers_of_speed_are_the_measured_ones():
    def read(name):
        return json.loads((ROOT / f"results/speed/{name}.json").read_text(encoding="utf-8"))

    def speeds(pair):
        return [f"{pair[side]['tokens_per_second']:,.0f}" for side in ("ours", "fairseq")]

    fp32, bf16, wide = (read(name)["pairs"] for name in ("training", "training_bf16", "training_bf16_d1024"))
    page, readme = DOCS["speed"], (ROOT / "README.md").read_text(encoding="utf-8")
    for name, pair in bf16.items():
        cells = [f" {', '.join(speeds(one))} | {one['ratio']:.2f}x |" for one in (fp32[name], pair)]
        assert "".join(cells) in page
        if name != "6 layers":
            assert f" | {' | '.join(speeds(pair))} | {pair['ratio']:.1f}x |" in readme
    (pair,) = wide.values()
    assert f" {', '.join(speeds(pair))} | {pair['ratio']:.2f}x |" in page
    shares = [pair["share_of_matmul_peak"] for pair in bf16.values()]
    text = " ".join(page.split())
    assert f"In bf16, it reaches {min(shares):.0%} to {max(shares):.0%}, because" in text
    assert f"and {pair['share_of_matmul_peak']:.0%} with d_model 1024" in text
    for kind in ("tcmalloc", "jemalloc"):
        assert f"{read('allocators')['rows'][kind]['to_glibc']:.2f} times" in text
    for name, machine in (("training_parts", "AMD EPYC"), ("training_parts_bf16", "Intel Xeon with AMX")):
        assert re.search(rf"{read(name)['rows']['+ --compile']['to_before']:.2f} times .{{,60}}{machine}", text)
    by_engine = {row["engine"]: row for row in read("decoding")["speed"] if row["load"] == "together"}
    ours, theirs = by_engine["CTranslate2 float32"], by_engine["fairseq-generate"]
    rounded = [f"{row['sentences_per_second']:.0f}" for row in (ours, theirs)]
    assert f"sentences/s | {' | '.join(rounded)} | {ours['ratio']:.1f}x |" in readme


def test_the_difference_of_bf16_is_the_measured_one():
    measured = json.loads((ROOT / "results/speed/precision_loss.json").read_text(encoding="utf-8"))
    difference = measured["difference_in_nats"]
    low, high = difference["interval"]
    text = " ".join(DOCS["speed"].split())
    assert f"differs from fp32's by {difference['mean']:+.4f} nats per subword" in text
    assert f"(95% interval {low:+.4f} to {high:+.4f}, {difference['pairs']} pairs of seeds)" in text
    assert -0.02 < low < high < 0.02


def test_numbers_of_quantized_models_are_the_measured_ones():
    measured = json.loads((ROOT / "results/speed/quantization.json").read_text(encoding="utf-8"))
    for model in measured["models"]:
        rows = dict(model["types"])
        assert f" (fairseq: {rows.pop('fairseq')['bleu']:.2f}) |" in DOCS["decoding"]
        for kind, row in rows.items():
            differences = f"{row['mean_difference']:.1g} / {row['largest_difference']:.1g}"
            assert f"| {kind} | {differences} | {row['same']:.1%} | {row['bleu']:.2f}" in DOCS["decoding"]


def test_numbers_of_the_export_to_hugging_face_are_the_measured_ones():
    measured = json.loads((ROOT / "results/from_trained/huggingface.json").read_text(encoding="utf-8"))
    page = DOCS["huggingface"]
    for model in measured["models"]:
        kept = f" {model['shared_once']['bytes']:,} |" if "shared_once" in model else " |"
        assert f"| {model['parameters']:,} | {model['all_layers']['bytes']:,} |{kept}" in page
        if "test" in model:
            bleu = [f"{model['bleu'][engine]:.2f}" for engine in ("huggingface", "fairseq")]
            assert f"| {model['same']:,} of {model['sentences']:,} | {bleu[0]} / {bleu[1]} |" in page
            assert model["same"] >= 0.995 * model["sentences"]
