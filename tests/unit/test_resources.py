"""Configurations and recipes are found in a clone, and the wheel contains them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from fairseq_sharing import resources

ROOT = Path(__file__).resolve().parents[2]


def test_clone_uses_the_directories_at_its_top():
    assert resources.configs_dir() == ROOT / "configs"
    assert resources.recipes_dir() == ROOT / "data-prep"


def test_package_prefers_its_own_directories(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "PACKAGE_DIR", tmp_path)
    for name in ("configs", "recipes"):
        (tmp_path / name).mkdir()
    assert (resources.configs_dir(), resources.recipes_dir()) == (tmp_path / "configs", tmp_path / "recipes")


def test_wheel_holds_every_configuration_and_recipe(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    # A copy, because a build writes files next to the sources.
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("fairseq_sharing", "configs", "data-prep"):
        for file in (ROOT / name).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps"),
            *("--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, source),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for top, inside in (("configs", "configs"), ("data-prep", "recipes")):
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"fairseq_sharing/{inside}/{file.relative_to(ROOT / top).as_posix()}" in names
    code = ("modeling_fairseq_sharing.py", "tokenization_fairseq_sharing.py")
    for name in ("py.typed", "decoding/model_card.md.jinja", *(f"decoding/huggingface_code/{file}" for file in code)):
        assert f"fairseq_sharing/{name}" in names
