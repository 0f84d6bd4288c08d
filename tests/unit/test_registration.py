"""The package registers with fairseq for any order of imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_sharing

PACKAGE = Path(fairseq_sharing.__file__).parent
PACKAGE_INSIDE = """
import builtins
stock = builtins.__import__
def load(name, *rest):
    if name == "fairseq.%s":
        stock("fairseq_sharing")
    return stock(name, *rest)
builtins.__import__ = load
import fairseq
"""
ORDERS = {
    "package, fairseq": "import fairseq_sharing, fairseq",
    "package, a module of fairseq": "import fairseq_sharing\nfrom fairseq.data import Dictionary",
    "fairseq, package": "import fairseq, fairseq_sharing",
    "package at the start of fairseq": PACKAGE_INSIDE % "distributed",
    "package at the end of fairseq": PACKAGE_INSIDE % "pdb",
    "module without fairseq, fairseq": "import fairseq_sharing.layer_map, fairseq",
    "module with torch, fairseq": "import fairseq_sharing.tying, fairseq",
    "model": "from fairseq_sharing.models.transformer_sharing import TransformerSharingModel",
    "last model": "import fairseq_sharing.moeut.transformer_lm_moeut",
    "module of fairseq's parts": "import fairseq_sharing.fast.compiled_layer",
    "schedule": "import fairseq_sharing.schedules.engine",
    "fixes": "import fairseq_sharing.fixes",
    "description": "import fairseq_sharing.description.describe",
    "fairseq not found at first": "import fairseq_sharing\nsys.modules['fairseq'] = None\n"
    "try:\n    import fairseq\nexcept ImportError:\n    del sys.modules['fairseq']\nimport fairseq",
    "package imported anew": "import fairseq_sharing\n"
    "for name in [name for name in sys.modules if name.startswith('fairseq_sharing')]:\n    del sys.modules[name]\n"
    "import fairseq_sharing.layer_map, fairseq",
    "user directory alone": "import fairseq",
}
CHECK = """
from argparse import Namespace
from fairseq import utils
def found():
    from fairseq import criterions, models, optim, tasks
    from fairseq.data import data_utils
    registered = {**models.MODEL_REGISTRY, **tasks.TASK_REGISTRY, **criterions.CRITERION_REGISTRY,
                  **optim.OPTIMIZER_REGISTRY}
    ours = [name for name, kind in registered.items() if kind.__module__.startswith("fairseq_sharing.")]
    return sorted(ours), hasattr(data_utils.batch_by_size, "__wrapped__")
before = found()
utils.import_user_module(Namespace(user_dir=PACKAGE))
print(json.dumps([before, found()]), flush=True)
"""
# One interpreter without either package, forked for each order, because fairseq's dependencies take seconds to import.
FORKS = f"""
import json, logging, os, sys
import hydra, omegaconf, sacrebleu, scipy.stats, sklearn.metrics, torch.utils.tensorboard
logging.disable(logging.INFO)
PACKAGE = {str(PACKAGE)!r}
for order in json.load(sys.stdin):
    assert not any(name.startswith("fairseq") for name in sys.modules)
    if os.fork() == 0:
        exec(order + {CHECK!r})
        os._exit(0)
    if os.wait()[1]:
        print("null", flush=True)
"""
OURS = (
    *(
        "fused_adam",
        "fused_label_smoothed_cross_entropy",
        "label_smoothed_cross_entropy_with_ponder",
        "label_smoothed_cross_entropy_with_teacher",
    ),
    *("language_modeling_sharing", "masked_lm_sharing", "moe_cross_entropy", "roberta_sharing"),
    *("transformer_lm_moeut", "transformer_lm_sharing", "transformer_moeut", "transformer_sharing"),
    "translation_sharing",
)


@pytest.fixture(scope="module")
def registered() -> dict[str, list]:
    """Return, for each order, what is registered after the imports and after --user-dir."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        input=json.dumps(list(ORDERS.values())),
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(ORDERS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_everything_is_registered_once_both_are_imported(registered, order):
    assert registered[order] is not None, "an exception"
    before, after = registered[order]
    assert before == ([[], False] if order == "user directory alone" else [[*OURS], True])
    assert after == [[*OURS], True]


@pytest.mark.parametrize(
    "code", ["import fairseq_sharing", "from fairseq_sharing.commands import main; main(['--help'])"]
)
def test_package_and_help_need_neither_torch_nor_fairseq(code):
    told = "print([name for name in ('fairseq', 'torch', 'numpy', 'omegaconf') if name in sys.modules])"
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n{told}"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
