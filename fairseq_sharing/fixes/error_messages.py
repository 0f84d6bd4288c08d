"""Errors of this package as one line in fairseq's commands."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

from fairseq import models

from fairseq_sharing.errors import SharingError


def find_sharing_error(error: BaseException | None) -> SharingError | None:
    """Find a SharingError in an exception or in what it was raised from.

    An error of a spawned process comes as text; its line is found there.
    """
    while error is not None:
        if isinstance(error, SharingError):
            return error
        told = re.findall(rf"{SharingError.__module__}\.{SharingError.__name__}: (.*)", str(error))
        if told:
            return SharingError(told[-1])
        error = error.__cause__ or error.__context__
    return None


def tell_errors_in_one_line() -> None:
    """Make fairseq's commands end with one line instead of a traceback when a SharingError stops them.

    Only in a process that runs one of fairseq's commands: elsewhere a Python caller gets the exception itself.
    """
    program = Path(sys.argv[0] or "").stem
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = main.name if main else ""
    if not (program.startswith("fairseq-") or module.startswith("fairseq_cli")):
        return
    stock_hook = sys.excepthook
    name = program if program.startswith("fairseq-") else "fairseq-" + module.rpartition(".")[2].replace("_", "-")

    def hook(kind, error, traceback):
        told = find_sharing_error(error)
        if told is None:
            stock_hook(kind, error, traceback)
        else:
            print(f"{name}: error: {told}", file=sys.stderr)

    sys.excepthook = hook
    if name == "fairseq-hydra-train":
        models.build_model = _exit_on_sharing_error(models.build_model, name)


def _exit_on_sharing_error(stock, name: str):
    """Hydra, which never lets an exception reach the hook, lets SystemExit pass."""

    @functools.wraps(stock)
    def function(*args, **kwargs):
        try:
            return stock(*args, **kwargs)
        except SharingError as error:
            sys.exit(f"{name}: error: {error}")

    return function
