"""Import Hugging Face's transformers, which is optional, and keep it quiet and offline."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError

logger = logging.getLogger(__name__)

LEAST = (5, 24)
"""The lowest version with which exports are tested; the names of tied weights have another form before."""

MODELING, TOKENIZATION = "modeling_fairseq_sharing", "tokenization_fairseq_sharing"
"""The Python files that an exported folder may contain, without suffix."""

_CODE = "huggingface_code"


def import_transformers() -> Any:
    """Import transformers.

    Returns:
        The module.

    Raises:
        SharingError: transformers or safetensors is not installed, or transformers is too old.
    """
    _hide_broken_torchaudio()
    try:
        importlib.import_module("safetensors.torch")
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise SharingError(
            "transformers is not installed; install it with: pip install 'fairseq-sharing[huggingface]'"
        ) from None
    version = transformers.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST:
        least = ".".join(map(str, LEAST))
        raise SharingError(
            f"transformers {version} is too old; allowed: {least} or later (pip install -U transformers)"
        )
    return transformers


def _hide_broken_torchaudio() -> None:
    """Hide a torchaudio that does not fit torch from transformers, which would fail with it on M2M100 models."""
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # find_spec then returns None
        logger.warning(
            f"torchaudio {metadata.version('torchaudio')} does not fit torch {metadata.version('torch')}; transformers "
            "cannot load M2M100 models next to it; remove it with: pip uninstall torchaudio"
        )


def find_class(name: str, module: str | None = None) -> Any:
    """Return a class of transformers, or of a Python file that exported folders contain, from this package.

    Args:
        name: the class.
        module: the file, without suffix; None for transformers.
    """
    library = import_transformers()
    return getattr(library if module is None else importlib.import_module(f"{__package__}.{_CODE}.{module}"), name)


def copy_code(folder: Path, module: str) -> Path:
    """Copy a Python file into an exported folder.

    Args:
        folder: the folder.
        module: the file, without suffix.

    Returns:
        The copy.
    """
    return Path(shutil.copyfile(Path(__file__).parent / _CODE / f"{module}.py", folder / f"{module}.py"))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars and messages of transformers."""
    from transformers.utils import logging as messages

    shown, level = messages.is_progress_bar_enabled(), messages.get_verbosity()
    messages.disable_progress_bar()
    messages.set_verbosity_error()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if shown:
            messages.enable_progress_bar()
