"""fairseq is imported without scikit-learn and SciPy, and its metrics compute as before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fairseq_sharing import deferred_imports

METRICS = """
import sys
import fairseq_sharing
import fairseq
from fairseq.criterions import sentence_prediction as criterion
from fairseq.tasks import audio_classification as task
loaded = [name for name in ("sklearn", "scipy.stats") if name in sys.modules]
assert not loaded, loaded
assert criterion.f1_score([1, 0, 1], [1, 1, 1]) == 0.8
assert criterion.pearsonr([1, 2, 3], [2, 4, 6]).statistic > 0.999
assert task.sklearn_metrics.roc_curve([0, 1], [0.1, 0.9])[1].tolist() == [0, 1, 1]
import sklearn.metrics, scipy.stats
assert sklearn.__version__ and issubclass(scipy.stats.rv_continuous, object)
"""


def test_metrics_of_fairseq_import_their_libraries_when_they_are_called():
    subprocess.run([sys.executable, "-c", METRICS], check=True)


def test_modules_that_are_imported_already_stay(monkeypatch):
    module = sys.modules["json"]
    monkeypatch.setattr(deferred_imports, "_DEFERRED", ("json", "not_installed"))
    with deferred_imports.deferred_imports():
        import json

        from not_installed import function
    assert json is module
    assert "not_installed" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        function()


def test_stand_ins_are_removed_after_a_failed_import(monkeypatch):
    monkeypatch.setattr(deferred_imports, "_DEFERRED", ("not_installed",))
    with pytest.raises(RuntimeError), deferred_imports.deferred_imports():
        raise RuntimeError
    assert "not_installed" not in sys.modules
