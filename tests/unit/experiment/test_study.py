"""Study files: rows of a file or of the study, seeds, and refused values."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose, find_study
from fairseq_sharing.experiment.study import METRICS as DECLARABLE
from fairseq_sharing.experiment.study import StudyData, read_study
from fairseq_sharing.reporting.metrics import METRICS

RECIPE = "dataset: other\nseed: 5\ntrain: {dropout: 0.3, max_epoch: 9}\nevaluate: {beam: 4}\n"
ROWS = "plain: {train: {sharing: none}}\nshared: {train: {sharing: cycle, dropout: 0.1}, tokens_per_batch: 64}\n"
STUDY = """
question: Which?
data: mine
recipe: recipe.yaml
rows:
  from: rows.yaml
  only: [shared, plain]
  add: {deep: {train: {encoder_layers: 8}}, copy: {map_of: shared, train: {sharing: custom}}}
seeds: [1, 2]
row_seeds: {plain: [1, 2, 3]}
overrides: [train.max_epoch=7]
compare: {baseline: plain, primary: news, margin: 0.5}
estimate: {pairs: 10, vocabulary: 20}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "rows.yaml").write_text(ROWS)
    file = tmp_path / "which.yaml"
    file.write_text(STUDY)
    return file


def test_study_is_read(study):
    found = read_study(study)
    assert (found.name, found.question, found.data) == ("which", "Which?", StudyData("mine", "mine"))
    assert list(found.rows) == ["shared", "plain", "deep", "copy"]
    assert [found.seeds_of(row) for row in ("shared", "plain")] == [(1, 2), (1, 2, 3)]
    assert (found.baseline, found.primary, found.margin) == ("plain", "news", 0.5)
    assert (found.map_of, found.estimate) == ({"copy": "shared"}, {"pairs": 10, "vocabulary": 20})


def test_row_is_recipe_then_row_then_overrides_of_the_study_then_of_the_user(study):
    config = compose(study, ["row=shared", "seed=2", "train.fast=true"])
    assert OmegaConf.to_container(config) == {
        "seed": 2,
        "run": "shared",
        "study": "which",
        "dataset": "mine",
        "tokens_per_batch": 64,
        "train": {"dropout": 0.1, "max_epoch": 7, "sharing": "cycle", "fast": True},
        "evaluate": {"beam": 4},
    }
    assert compose(study, ["row=copy"]).map_of == "shared"
    assert compose(study, ["row=plain", "train.max_epoch=1"]).train.max_epoch == 1
    assert "study" not in compose(study, ["row=plain", "dataset=other"]), "its runs are not those of the study"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "which.yaml: row=NAME must be given once, got none; rows: shared, plain, deep, copy"),
        (["row=plain", "row=deep"], "which.yaml: row=NAME must be given once, got plain, deep; rows: "),
        (["row=plan"], "which.yaml: row: 'plan'; allowed: shared, plain, deep, copy"),
        (["row=plain", "study=x"], "override: unknown key 'study'; allowed: run, "),
    ],
)
def test_a_row_must_be_named_once(study, overrides, message):
    with pytest.raises(SharingError) as error:
        compose(study, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question:", "quesion:", "unknown key 'quesion'; allowed: question, data, "),
        ("data: mine", "data: ../mine", "data: '../mine'; allowed: letters, digits"),
        ("data: mine", "data: [mine]", "data: ['mine']; allowed: a name, or a mapping with name, recipe, subword_size"),
        ("data: mine", "data: {recipe: x}", "data.name: missing"),
        ("data: mine\n", "", "data: missing"),
        ("recipe: recipe.yaml", "recipe: none.yaml", "recipe: none.yaml: no such file in "),
        ("from: rows.yaml", "from: none.yaml", "rows.from: none.yaml: no such file in "),
        ("only: [shared, plain]", "only: [shred]", "rows.only: no row 'shred' in "),
        ("only: [shared, plain]", "only: true", "rows.only: True; allowed: a list of rows of "),
        ("add: {deep", "add: true #", "rows.add: True; allowed: a mapping with row names"),
        ("baseline: plain", "baseline: '${nothing}'", "which.yaml: Interpolation key 'nothing' not found"),
        ("baseline: plain", "baseline: '???'", "which.yaml: compare.baseline: '???'; allowed: a value"),
        (
            "{train: {encoder_layers: 8}}",
            "{trian: {}}",
            "rows.add: deep: unknown key 'trian'; allowed: train, ",
        ),
        ("{train: {encoder_layers: 8}}", "8", "rows.add: deep: must be a mapping with train, "),
        ("deep:", "../deep:", "rows.add: row name: '../deep'; allowed: letters, digits"),
        ("map_of: shared", "map_of: shred", "map_of: no row 'shred'; allowed: shared, plain"),
        ("seeds: [1, 2]\n", "seeds: [1, 1]\n", "seeds: [1, 1]; allowed: each seed once"),
        ("seeds: [1, 2]\n", "seeds: [true]\n", "seeds: [True]; allowed: a list of whole numbers from 0"),
        ("seeds: [1, 2]\n", "seeds: 1\n", "seeds: 1; allowed: a list of whole numbers from 0"),
        ("row_seeds: {plain", "row_seeds: {plan", "row_seeds: unknown key 'plan'; allowed: shared, plain"),
        ("baseline: plain", "baseline: plan", "compare.baseline: no row 'plan'; allowed: shared, plain"),
        ("margin: 0.5", "margin: .nan", "compare.margin: nan; allowed: finite numbers"),
        ("pairs: 10", "pairs: -1", "estimate.pairs: -1; allowed: a whole number from 1"),
        ("pairs: 10, ", "", "estimate: vocabulary; allowed: vocabulary, and pairs or tokens per epoch"),
        ("overrides: [train.max_epoch=7]", "overrides: 5", "overrides: 5; allowed: a list such as [train.max_epoch=3]"),
        (
            "{train: {encoder_layers: 8}}",
            "{from_trained: {checkpoint: a, fit_iterations: x}}",
            "rows.add: deep: from_trained.fit_iterations: 'x'; allowed: a whole number from 0",
        ),
        (
            "{train: {encoder_layers: 8}}",
            "{from_trained: {checkpoint: a, align: 7}}",
            "rows.add: deep: from_trained.align: 7; allowed: true or false",
        ),
        ("overrides: [train.max_epoch=7]", "overrides: [max_epoch=7]", "unknown key 'max_epoch'"),
    ],
)
def test_mistakes_are_one_line(study, old, new, message):
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new, 1))
    with pytest.raises(SharingError) as error:
        compose(study, ["row=plain"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_experiment_is_no_study(study):
    with pytest.raises(SharingError, match=r"recipe\.yaml: a single experiment; allowed: a study, which has rows"):
        find_study(study.with_name("recipe.yaml"))


def test_a_name_that_does_not_exist_lists_the_studies():
    with pytest.raises(
        SharingError, match=r"multi40k: no such file.*; studies: changing_sharing, depths, from_trained, iwslt14"
    ):
        find_study("multi40k")


def test_a_study_can_declare_every_metric_of_reports():
    assert tuple(METRICS) == DECLARABLE
