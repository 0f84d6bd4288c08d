"""Register the package with fairseq, whichever of the two is imported first.

A hook that runs right after the import of fairseq is not enough. fairseq may be imported by a module of this package
that other modules depend on and that is still incomplete, or fairseq may itself import this package. Therefore all
these imports are watched, and registration happens when the last one ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.partition(".")[0]
_waiting: list[Callable[[], None]] = []


def call_after_imports(function: Callable[[], None]) -> None:
    """Call a function when fairseq is imported and no import of fairseq or of this package is in progress.

    Args:
        function: called once; immediately if the condition already holds.
    """
    _waiting.append(function)
    # Remove the finder of an earlier import of this package: two finders would call each other endlessly.
    earlier = [finder for finder in sys.meta_path if repr(type(finder)) == repr(_Finder)]
    sys.meta_path[:] = [_Finder(), *(finder for finder in sys.meta_path if finder not in earlier)]
    fairseq = sys.modules.get("fairseq")
    if fairseq is not None and _is_importing(fairseq):
        _watch(fairseq.__spec__)
    _call_if_ready()


def _call_if_ready() -> None:
    if not _waiting:
        return
    watched = [module for name, module in list(sys.modules.items()) if _is_watched(name)]
    if "fairseq" in sys.modules and not any(map(_is_importing, watched)):
        while _waiting:
            _waiting.pop()()


def _is_watched(name: str) -> bool:
    return name == "fairseq" or name.startswith(f"{_PACKAGE}.")


def _is_importing(module: ModuleType) -> bool:
    return getattr(module.__spec__, "_initializing", False)


class _WatchedSpec(ModuleSpec):
    """Detect the end of an import: Python sets ``_initializing`` to True before it and to False after it."""

    @property
    def _initializing(self) -> bool:
        return self.__dict__.get("_importing", False)

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_importing"] = value
        if not value:
            _call_if_ready()


def _watch(spec: ModuleSpec | None) -> None:
    if type(spec) is ModuleSpec:
        importing = spec.__dict__.pop("_initializing", False)
        spec.__class__ = _WatchedSpec
        spec.__dict__["_importing"] = importing


class _Finder(MetaPathFinder):
    """Delegate to the other finders and watch the imports of fairseq and of this package."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_watched(name):
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                _watch(spec)
                return spec
        return None
