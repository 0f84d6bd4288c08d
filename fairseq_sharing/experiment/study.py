"""Studies: one YAML file with data, a recipe, rows and seeds. One row with one seed is an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_sharing.documents import is_count, is_quantity
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.layers import (
    Layer,
    check_name,
    check_names,
    dotlist,
    first_line,
    load_layers,
    read_yaml,
    tidy_blocks,
)
from fairseq_sharing.resources import configs_dir

STUDY_KEYS = ("question", "data", "recipe", "rows", "seeds", "row_seeds", "overrides", "compare", "estimate")
DATA_KEYS = ("name", "recipe", "subword_size", "data_bin", "tests")
ROWS_KEYS = ("from", "only", "add")
ROW_KEYS = ("train", "evaluate", "tokens_per_batch", "map_of", "from_trained", "checkpoints")
FROM_TRAINED_KEYS = ("checkpoint", "init", "align", "fit_iterations")
_FROM_TRAINED_TYPES = {
    "init": (str, "a choice of --init of fairseq-sharing tie"),
    "align": (bool, "true or false"),
    "fit_iterations": (int, "a whole number from 0"),
}
COMPARE_KEYS = ("baseline", "primary", "metric", "margin")
METRICS = ("bleu", "chrf", "chrf++", "ter", "perplexity", "word_perplexity")
ESTIMATE_KEYS = ("pairs", "tokens", "vocabulary")


@dataclass(frozen=True)
class StudyData:
    """The data of a study.

    Args:
        name: directory in ``data/``.
        recipe: recipe in ``data-prep/``.
        settings: flags of ``prepare`` that override the recipe.
        data_bin: output of ``fairseq-preprocess``, for a study of checkpoints only; None for prepared data.
        tests: with ``data_bin``, the test sets as ``NAME=SUBSET,REFERENCE``.
    """

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    data_bin: str | None = None
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """The contents of a study file.

    Args:
        name: the file name without suffix; also the directory name of its runs and results.
        file: the study file.
        question: the question that the study answers.
        data: the training data.
        recipe: the recipe file, which configures the training of every row; None if no row is trained here.
        rows: for each row, the configuration block in which it differs from the recipe.
        map_of: for a row that trains with the final layer map of another row, that row.
        checkpoints: for a row that was trained by plain ``fairseq-train``, its checkpoint directories: a path that
            contains ``{seed}`` if the row has several seeds.
        seeds: the seeds of every row that is not in ``row_seeds``.
        row_seeds: the seeds of single rows.
        overrides: ``key=value`` overrides for every row.
        baseline: the row that the others are compared with.
        primary: the test set of the comparison, or ``mean`` of all.
        metric: the metric of the comparison, one of ``METRICS``.
        margin: difference below which rows count as equivalent.
        estimate: ``vocabulary`` and ``pairs``, or target ``tokens`` per epoch, to estimate the cost before the data is
            prepared.
    """

    name: str
    file: Path
    question: str
    data: StudyData
    recipe: Path | None
    rows: Mapping[str, DictConfig]
    map_of: Mapping[str, str]
    checkpoints: Mapping[str, str]
    seeds: tuple[int, ...]
    row_seeds: Mapping[str, tuple[int, ...]]
    overrides: tuple[str, ...]
    baseline: str | None
    primary: str
    metric: str
    margin: float
    estimate: Mapping[str, int] = field(default_factory=dict)

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """Return the seeds of a row."""
        return self.row_seeds.get(row, self.seeds)

    def layers(self, row: str) -> list[Layer]:
        """Return the layers of a row's configuration, from the recipe to the overrides of the study.

        Raises:
            SharingError: the row does not exist.
        """
        if row not in self.rows:
            raise SharingError(f"{self.file}: row: {row!r}; allowed: {', '.join(self.rows)}")
        if row in self.checkpoints:
            raise SharingError(f"{self.file}: row {row}: trained elsewhere; allowed: study and evaluate")
        names = {"run": row, "study": self.name, "dataset": self.data.name}
        if row in self.map_of:
            names["map_of"] = self.map_of[row]
        assert self.recipe is not None
        return [
            *load_layers(self.recipe),
            (str(self.file), OmegaConf.create(names)),
            (f"{self.file}: row {row}", self.rows[row]),
            (f"{self.file}: overrides", dotlist(self.overrides)),
        ]


def is_study(document: Mapping[Any, Any]) -> bool:
    """Return whether a YAML document is a study. A single experiment has no rows."""
    return "rows" in document


def read_study(file: Path) -> Study:
    """Read and check a study file.

    Args:
        file: the YAML file. Paths in it are relative to its directory, or to the package's configurations.

    Raises:
        SharingError: an unknown key, a value of the wrong type, a row or file that does not exist, or a wrong seed.
    """
    try:
        return _read_study(file)
    except OmegaConfBaseException as error:  # an interpolation that cannot be resolved, or a value of ???
        raise SharingError(f"{file}: {first_line(error)}") from error


def _read_study(file: Path) -> Study:
    document = read_yaml(file)
    where = f"{file}: "
    check_names(document, STUDY_KEYS, where)
    for key in ("data", "rows", "seeds"):
        if not document.get(key):
            raise SharingError(f"{where}{key}: missing")
    rows, map_of = _rows(document, file)
    data, checkpoints = _data(document.data, where), _take_checkpoints(rows, where)
    trained_here = [row for row in rows if row not in checkpoints]
    if trained_here and data.data_bin is not None:
        raise SharingError(
            f"{where}data.data_bin: row {trained_here[0]} has no checkpoints; allowed: rows with checkpoints"
        )
    if trained_here and not document.get("recipe"):
        raise SharingError(f"{where}recipe: missing")
    recipe = _find(str(document.recipe), file, "recipe") if document.get("recipe") else None
    compare = _mapping(document, "compare", COMPARE_KEYS, where)
    baseline = compare.get("baseline")
    row_seeds = _mapping(document, "row_seeds", tuple(rows), where)
    for name, row in (("compare.baseline", baseline), *(("map_of", origin) for origin in map_of.values())):
        if row is not None and row not in rows:
            raise SharingError(f"{where}{name}: no row {row!r}; allowed: {', '.join(rows)}")
    margin = compare.get("margin", 0.3)
    if not is_quantity(margin) or not 0 < margin < 100:
        raise SharingError(f"{where}compare.margin: {margin!r}; allowed: a number above 0, in points of the metric")
    metric = compare.get("metric", METRICS[0])
    if metric not in METRICS:
        raise SharingError(f"{where}compare.metric: {metric!r}; allowed: {', '.join(METRICS)}")
    estimate = _mapping(document, "estimate", ESTIMATE_KEYS, where)
    for key, value in estimate.items():
        if not is_count(value) or value < 1:
            raise SharingError(f"{where}estimate.{key}: {value!r}; allowed: a whole number from 1")
    if estimate and not ("vocabulary" in estimate and estimate.keys() & {"pairs", "tokens"}):
        raise SharingError(
            f"{where}estimate: {', '.join(estimate)}; allowed: vocabulary, and pairs or tokens per epoch"
        )
    overrides = document.get("overrides") or ()
    if overrides and not OmegaConf.is_list(overrides):
        raise SharingError(f"{where}overrides: {overrides!r}; allowed: a list such as [train.max_epoch=3]")
    return Study(
        name=check_name(file.stem, f"{file}: its name"),
        file=file,
        question=str(document.get("question") or ""),
        data=data,
        recipe=recipe,
        rows=rows,
        map_of=map_of,
        checkpoints=checkpoints,
        seeds=_seeds(document.seeds, f"{where}seeds"),
        row_seeds={row: _seeds(seeds, f"{where}row_seeds.{row}") for row, seeds in row_seeds.items()},
        overrides=tuple(map(str, overrides)),
        baseline=baseline,
        primary=str(compare.get("primary", "mean")),
        metric=metric,
        margin=float(margin),
        estimate=estimate,
    )


def _find(name: str, file: Path, key: str) -> Path:
    for folder in (file.parent, configs_dir()):
        if (folder / name).is_file():
            return folder / name
    raise SharingError(f"{file}: {key}: {name}: no such file in {file.parent} or {configs_dir()}")


def _rows(document: DictConfig, file: Path) -> tuple[dict[str, DictConfig], dict[str, str]]:
    """Read the rows from the study or from a separate file."""
    block = document.rows
    if not isinstance(block, DictConfig):
        raise SharingError(f"{file}: rows: must be a mapping with row names, or with {', '.join(ROWS_KEYS)}")
    if "from" not in block:
        return _checked_rows(block, str(file))
    check_names(block, ROWS_KEYS, f"{file}: rows: ")
    source = _find(str(block["from"]), file, "rows.from")
    rows, map_of = _checked_rows(read_yaml(source), str(source))
    only, add = block.get("only") or OmegaConf.create(list(rows)), block.get("add") or OmegaConf.create({})
    if not OmegaConf.is_list(only):
        raise SharingError(f"{file}: rows.only: {only!r}; allowed: a list of rows of {source}")
    if not isinstance(add, DictConfig):
        raise SharingError(f"{file}: rows.add: {add!r}; allowed: a mapping with row names")
    chosen = list(only)
    for row in chosen:
        if row not in rows:
            raise SharingError(f"{file}: rows.only: no row {row!r} in {source}; allowed: {', '.join(rows)}")
    added, also_map_of = _checked_rows(add, f"{file}: rows.add")
    kept = {row: rows[row] for row in chosen}
    return {**kept, **added}, {row: of for row, of in {**map_of, **also_map_of}.items() if row in {*kept, *added}}


def _checked_rows(block: DictConfig, where: str) -> tuple[dict[str, DictConfig], dict[str, str]]:
    rows, map_of = {}, {}
    for key, row in block.items():
        name = str(key)
        place = f"{where}: {name}: "
        check_name(name, f"{where}: row name")
        if not isinstance(row, DictConfig):
            raise SharingError(f"{place}must be a mapping with {', '.join(ROW_KEYS)}")
        check_names(row, ROW_KEYS, place)
        source = _mapping(row, "from_trained", FROM_TRAINED_KEYS, place)
        if source and not isinstance(source.get("checkpoint"), str):
            raise SharingError(f"{place}from_trained.checkpoint: missing; allowed: a checkpoint or run directory")
        for key, (kind, allowed) in _FROM_TRAINED_TYPES.items():
            if key in source and type(source[key]) is not kind:
                raise SharingError(f"{place}from_trained.{key}: {source[key]!r}; allowed: {allowed}")
        plain = OmegaConf.create(OmegaConf.to_container(row, resolve=False))
        assert isinstance(plain, DictConfig)
        if "map_of" in plain:
            map_of[name] = str(plain.pop("map_of"))
        tidy_blocks(plain, place)
        rows[name] = plain
    return rows, map_of


def _take_checkpoints(rows: dict[str, DictConfig], where: str) -> dict[str, str]:
    """Remove the checkpoint directories from the rows."""
    found = {row: str(block.pop("checkpoints")) for row, block in rows.items() if "checkpoints" in block}
    for row in found:
        if rows[row]:
            raise SharingError(
                f"{where}{row}: checkpoints: trained elsewhere; allowed: no {', '.join(map(str, rows[row]))}"
            )
    return found


def _data(value: Any, where: str) -> StudyData:
    if isinstance(value, str):
        name = check_name(value, f"{where}data")
        return StudyData(name, name)
    if not isinstance(value, DictConfig):
        raise SharingError(f"{where}data: {value!r}; allowed: a name, or a mapping with {', '.join(DATA_KEYS)}")
    check_names(value, DATA_KEYS, f"{where}data: ")
    if not value.get("name"):
        raise SharingError(f"{where}data.name: missing")
    name = check_name(value.name, f"{where}data.name")
    if value.get("data_bin"):
        tests = value.get("tests")
        if not isinstance(tests, DictConfig) or not tests:
            raise SharingError(f"{where}data.tests: {tests!r}; allowed: a mapping such as newstest: test,raw/test.de")
        pairs = tuple(f"{test!s}={place}" for test, place in tests.items())
        return StudyData(name, "", data_bin=str(value.data_bin), tests=pairs)
    size = value.get("subword_size")
    settings = () if size is None else ("--subword-size", str(size))
    return StudyData(name, check_name(value.get("recipe") or name, f"{where}data.recipe"), settings)


def _mapping(document: DictConfig, key: str, allowed: Sequence[str], where: str) -> dict[str, Any]:
    block = document.get(key)
    if block is None:
        return {}
    if not isinstance(block, DictConfig):
        raise SharingError(f"{where}{key}: must be a mapping, got {block!r}")
    check_names(block, allowed, f"{where}{key}: ")
    return {str(name): value for name, value in block.items()}


def _seeds(value: Any, what: str) -> tuple[int, ...]:
    seeds = tuple(value) if OmegaConf.is_list(value) else ()
    if not seeds or not all(map(is_count, seeds)):
        raise SharingError(f"{what}: {value}; allowed: a list of whole numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise SharingError(f"{what}: {value}; allowed: each seed once")
    return seeds
