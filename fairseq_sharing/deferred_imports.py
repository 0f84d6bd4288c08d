"""Import fairseq without scikit-learn and SciPy.

fairseq imports them for the metrics of audio and sentence classification, which takes half of the time of its import.
They are imported when such a metric is first computed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader
from types import ModuleType
from typing import Any

_DEFERRED = ("sklearn", "sklearn.metrics", "scipy.stats")


class _DeferredModule(ModuleType):
    """A module whose functions import the real module when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in _DEFERRED:
            return _DeferredModule(f"{self.__name__}.{name}")

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Let the modules that are imported now get functions of scikit-learn and SciPy that import them when called."""
    added = {name: _DeferredModule(name) for name in _DEFERRED if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def defer_imports_of(loader: Loader) -> None:
    """Make a loader execute its module with ``deferred_imports``."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        with deferred_imports():
            execute(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]
