"""Reject NaN and infinite numbers in options, scores and result files; errors name the field."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

HUGE = 10**9
"""No option of this package takes a larger number."""

MAX_BEAM = 1000
"""Largest beam, which the memory of a decoder limits."""


def is_number(value: Any) -> bool:
    """Return whether a value is a finite int or float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False


def as_number(value: Any) -> float | None:
    """Convert a value of a log; None if it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def finite_number(text: str) -> float:
    """Parse a command-line value as a finite number; used as the ``type`` of an argparse option.

    Raises:
        argparse.ArgumentTypeError: the text is not a number, or it is NaN or infinite.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return number


def positive_number(text: str) -> float:
    """Parse a command-line value as a number above 0.

    Raises:
        argparse.ArgumentTypeError: the text is not a number, or it is not above 0, NaN, infinite or absurd.
    """
    number = finite_number(text)
    if not 1 / HUGE <= number <= HUGE:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most {HUGE:,}, got {text!r}")
    return number


def nonnegative_number(text: str) -> float:
    """Parse a command-line value as a number from 0.

    Raises:
        argparse.ArgumentTypeError: the text is not a number, or it is below 0, NaN, infinite or absurdly large.
    """
    number = finite_number(text)
    if not 0 <= number <= HUGE:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {HUGE:,}, got {text!r}")
    return number


def whole_number(least: int = 1, most: int = HUGE) -> Callable[[str], int]:
    """Return a parser of command-line values: whole numbers within limits, in decimal digits.

    Args:
        least: the least allowed value.
        most: the largest allowed value, beyond which a value is a mistake and would exhaust the machine.
    """

    def parse(text: str) -> int:
        if not re.fullmatch("[+-]?[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least:,} to {most:,}, got {text!r}")
        return int(text)

    return parse


def find_nonfinite(value: Any, field: str = "") -> str | None:
    """Find the first NaN or infinite number in nested mappings and lists, as read from JSON.

    Returns:
        The field and its value (``scores.test.bleu: nan``); None if all numbers are finite.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{field}: {value}"
    items: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    return next((found for key, item in items if (found := find_nonfinite(item, f"{field}.{key}".lstrip(".")))), None)
