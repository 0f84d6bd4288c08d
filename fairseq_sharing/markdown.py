"""Put text from data, results and users into Markdown pages without interpreting it."""

from __future__ import annotations

import re

from fairseq_sharing.terminal import one_line

_FENCE = 3  # backticks


def plain(text: object) -> str:
    """Return text as one line in which Markdown finds no HTML, link, image, code, emphasis or table cell."""
    return re.sub(r"[\\`*\[\]<>&|]", r"\\\g<0>", one_line(text))


def code_block(text: str, language: str) -> str:
    """Return a code block that its text cannot end.

    Args:
        text: the code; a line feed is added if it has none at its end.
        language: for highlighting.
    """
    fence = "`" * max([_FENCE, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}{language}\n{text.removesuffix(chr(10))}\n{fence}"
