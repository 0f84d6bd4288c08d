"""Fixtures of the tests of the sharing: every strategy with both norms, as a model and as a vanilla one."""

from __future__ import annotations

import pytest
from sharing_cases import CASES, NORMS


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    """Each strategy, a custom map, partial scopes, and stacks that differ."""
    return request.param


@pytest.fixture(params=NORMS)
def norm(request):
    """Both places of the LayerNorms: "pre" and "post"."""
    return request.param


@pytest.fixture
def model(case, norm):
    """The tiny shared model of a case, its weights moved away from their initial values, in eval mode."""
    from tiny_models import build_case

    return build_case(case, norm).eval()


@pytest.fixture
def vanilla(case, norm, model):
    """fairseq's own transformer of N layers with copies of the model's weights, in eval mode."""
    from tiny_models import vanilla_copy

    return vanilla_copy(case, model, norm).eval()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the dictionaries of a translation task from en to de."""
    from tiny_models import dictionary

    folder = tmp_path_factory.mktemp("data")
    for language in ("en", "de"):
        dictionary().save(str(folder / f"dict.{language}.txt"))
    return folder
