"""One-line errors of this package in fairseq's commands."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from fairseq_sharing.errors import SharingError
from fairseq_sharing.terminal import one_line


def find_sharing_error(error: BaseException | None) -> SharingError | None:
    """Find a SharingError in an exception or in its causes.

    An error of a spawned process arrives as text, so its line is extracted from there.
    """
    while error is not None:
        if isinstance(error, SharingError):
            return error
        messages = re.findall(rf"{SharingError.__module__}\.{SharingError.__name__}: (.*)", str(error))
        if messages:
            return SharingError(messages[-1])
        error = error.__cause__ or error.__context__
    return None


def print_errors_on_one_line() -> None:
    """Make fairseq's commands print a SharingError as one line instead of a traceback.

    This applies only to processes that run a fairseq command. Other Python callers get the exception itself.
    """
    program = Path(sys.argv[0] or "").stem
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = main.name if main else ""
    if not (program.startswith("fairseq-") or module.startswith("fairseq_cli")):
        return
    stock_hook = sys.excepthook
    name = program if program.startswith("fairseq-") else "fairseq-" + module.rpartition(".")[2].replace("_", "-")

    def hook(kind, error, traceback):
        cause: object = find_sharing_error(error)
        if cause is None and isinstance(error, OSError) and error.errno and error.filename:
            cause = f"{error.filename}: {error.strerror}"
        if cause is None:
            stock_hook(kind, error, traceback)
        else:
            print(f"{name}: error: {one_line(cause)}", file=sys.stderr)

    sys.excepthook = hook
    if name == "fairseq-hydra-train":
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise, errors do not reach the hook
