"""Fixtures of the model tests: every strategy with pre-norm and post-norm, and the equivalent vanilla models."""

from __future__ import annotations

import copy
import gc
import os
from types import SimpleNamespace

import pytest
import torch
from sharing_cases import CASES, NORMS, WITH_NORMS

import fairseq_sharing.models.transformer_sharing  # noqa: F401  fixes bf16 on some machines, before the first matrix product

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # runs Triton kernels on a CPU, slowly


def pytest_collection_finish():
    """Exclude imported objects, which are most objects, from garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Combine the cases below with the norms in pairs, unless a test has cases or norms of its own."""
    own = {name for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark)}
    if {"case", "norm"} <= set(metafunc.fixturenames) - own and not hasattr(metafunc.module, "case"):
        ids = [f"{case.name}-{norm}" for case, norm in WITH_NORMS]
        metafunc.definition.add_marker(pytest.mark.parametrize(("case", "norm"), WITH_NORMS, ids=ids))


def _names(mark):
    names = mark.args[0]
    return names.replace(" ", "").split(",") if isinstance(names, str) else names


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    """Each strategy, a custom map, partial scopes, and stacks that differ."""
    return request.param


@pytest.fixture(params=NORMS)
def norm(request):
    """Both positions of the LayerNorms: "pre" and "post"."""
    return request.param


@pytest.fixture(scope="session")
def built():
    """Cache of models by case and norm."""
    return {}


@pytest.fixture
def model(case, norm, built):
    """The tiny shared model of a case, with perturbed weights, in eval mode.

    Tests share this object. To change weights or ties, build another model with ``build_case``.
    """
    from tiny_models import build_case

    if ("shared", case.name, norm) not in built:
        built["shared", case.name, norm] = build_case(case, norm)
    model = built["shared", case.name, norm].eval()
    model.zero_grad()
    return model


@pytest.fixture
def vanilla(case, norm, model, built):
    """fairseq's own transformer of N layers with copies of the model's weights, in eval mode. Do not modify it."""
    from tiny_models import vanilla_copy

    if ("vanilla", case.name, norm) not in built:
        built["vanilla", case.name, norm] = vanilla_copy(case, model, norm)
    vanilla = built["vanilla", case.name, norm].eval()
    vanilla.zero_grad()
    return vanilla


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the dictionaries of an English-German translation task."""
    from tiny_models import dictionary

    folder = tmp_path_factory.mktemp("data")
    for language in ("en", "de"):
        dictionary().save(str(folder / f"dict.{language}.txt"))
    return folder


@pytest.fixture
def trained(case, norm, data_dir, built, tmp_path_factory):
    """A training of a case. Do not modify it.

    ``path`` is the checkpoint of fairseq's trainer after an update on the batch of seed 3, ``model`` the model then,
    ``next_model`` the model after one more update, on the batch of seed 4.
    """
    from tiny_models import make_trainer, save, train_step

    if ("trained", case.name, norm) not in built:
        trainer = make_trainer(data_dir, case, norm)
        train_step(trainer, seed=3)
        path = save(trainer, tmp_path_factory.mktemp("trained") / "checkpoint1.pt")
        model = copy.deepcopy(trainer.model).eval()
        train_step(trainer, seed=4)
        built["trained", case.name, norm] = SimpleNamespace(path=path, model=model, next_model=trainer.model.eval())
    return built["trained", case.name, norm]
