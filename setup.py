"""Take the configurations and data recipes at the top of the repository along into the package.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# directory at the top of the repository -> directory in the package (fairseq_sharing/resources.py finds either)
RESOURCES = {"configs": "configs", "data-prep": "recipes"}


class BuildWithResources(build_py):
    """``build_py`` that also copies RESOURCES; an editable install uses them where they are."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for source, target in RESOURCES.items():
            destination = Path(self.build_lib) / "fairseq_sharing" / target
            shutil.rmtree(destination, ignore_errors=True)
            shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithResources})
