"""fairseq's own tests of translation and language models pass with the plugin imported.

They are part of its source distribution, which pip downloads once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

VERSION = "0.12.3.1"
PATIENCE = 900  # seconds; a free core needs one minute
HELPERS = Path(__file__).resolve().parents[1] / "helpers" / "fairseq_test_helpers.py"
# Excluded: other models (lightconv, LSTM, fconv), tests that require fairseq's examples, and the six runs of a
# multilingual model, which take minutes.
MODELS = (
    "TestTranslation::test_transformer",
    "TestTranslation::test_transformer_cross_self_attention",
    "TestTranslation::test_transformer_layerdrop",
    "TestTranslation::test_max_positions",
    "TestLanguageModeling::test_transformer_lm",
    "TestLanguageModeling::test_normformer_lm",
    "TestLanguageModeling::test_transformer_lm_with_adaptive_softmax",
    "TestActivationCheckpointing",
    "TestOptimizers::test_optimizers",
)
# Excluded: comparisons with xformers, which is not installed; test_compare_with_baseline, which takes a minute; and
# searches over artificial probabilities, whose models are in a file that the source distribution lacks.
UNITS = """
    activation_checkpointing checkpoint_utils checkpoint_utils_for_task_level_attributes concat_dataset data_utils
    dataset dictionary export inference_dropout iterators lm_context_window metrics multihead_attention noising
    positional_encoding resampling_dataset sequence_generator sparse_multihead_attention token_block_dataset train
    transformer utils valid_subset_checks
"""
UNITS_LEFT_OUT = ("xformers", "compare_with_baseline", "TestSequenceGenerator", "Diverse", "TopPSampling", "Ngram")


@pytest.fixture(scope="module")
def fairseq_tests(request, tmp_path_factory) -> Path:
    """The parent folder of fairseq's ``tests``."""
    name = f"fairseq_fixed-{VERSION}"
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("fairseq")) if cache else tmp_path_factory.mktemp("fairseq")
    archive = folder / f"{name}.tar.gz"
    if not archive.exists():
        flags = ["--quiet", "--no-deps", "--no-binary", "fairseq-fixed", "--no-build-isolation", "--dest", str(folder)]
        pip = [sys.executable, "-m", "pip", "download", *flags, f"fairseq-fixed=={VERSION}"]
        got = subprocess.run(pip, capture_output=True, text=True)
        if not archive.exists():
            pytest.skip(f"pip cannot get the source distribution of fairseq-fixed {VERSION}: {got.stderr[-300:]}")
    place = tmp_path_factory.mktemp("own")
    with tarfile.open(archive) as tar:
        tests = [member for member in tar if member.name.startswith(f"{name}/tests/")]
        tar.extractall(place, tests, filter="data")
    (place / name / "pytest.ini").write_text("[pytest]\n")
    (place / name / "tests" / "__init__.py").touch()
    shutil.copy(HELPERS, place / name / "tests" / "utils.py")
    return place / name


@pytest.mark.timeout(PATIENCE)
def test_translation_language_models_and_what_they_are_made_of(commands, fairseq_tests):
    plugins = ["-p", "fairseq_sharing.models.transformer_sharing", "-p", "no:cacheprovider", "-p", "no:xdist"]
    words = ["-q", "-rfEsp", "--tb=short", "-W", "ignore", *plugins]
    words += ["-k", " and ".join(f"not {name}" for name in UNITS_LEFT_OUT)]
    words += [f"tests/test_binaries.py::{name}" for name in MODELS]
    words += [f"tests/test_{name}.py" for name in UNITS.split()]
    done = commands.start("pytest", *words, cwd=fairseq_tests).wait(patience=PATIENCE)
    passed = re.findall(r"^PASSED tests/(\w+)", done.stdout, re.MULTILINE)
    assert passed.count("test_binaries") == len(MODELS) + 1, "one of MODELS has two tests"
    assert len(passed) >= len(MODELS) + 1 + 85
