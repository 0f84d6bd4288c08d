"""Locate configurations and data recipes: at the top of a clone, or inside an installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent


def configs_dir() -> Path:
    """Return the directory of the experiment configurations, ``<dataset>/<experiment>.yaml``."""
    return _find("configs", "configs")


def recipes_dir() -> Path:
    """Return the directory of the data recipes, ``<dataset>/recipe.yaml``."""
    return _find("data-prep", "recipes")


def _find(name_in_clone: str, name_in_package: str) -> Path:
    packaged = PACKAGE_DIR / name_in_package
    return packaged if packaged.is_dir() else PACKAGE_DIR.parent / name_in_clone
