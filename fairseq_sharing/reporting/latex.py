"""Write text for LaTeX without characters that older engines and publishers' systems reject."""

from __future__ import annotations

import re
import unicodedata

_COMMANDS = {
    "\u00a0": "~",
    "\u00b1": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2212": "$-$",
    "\u2013": "--",
    "\u2014": "---",
    "\u2264": r"$\leq$",
    "\u2265": r"$\geq$",
    "\u2248": r"$\approx$",
    "\u2192": r"$\rightarrow$",
    "\u0394": r"$\Delta$",
    "\u00df": r"{\ss}",
    "\u00e6": r"{\ae}",
    "\u00c6": r"{\AE}",
    "\u00f8": r"{\o}",
    "\u00d8": r"{\O}",
    "\u0142": r"{\l}",
    "\u0141": r"{\L}",
    "\u0131": r"{\i}",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "\u2026": r"\ldots{}",
}
# Combining characters and the accents of LaTeX.
_ACCENTS = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": "."},
    **{"\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k"},
}


def ascii_latex(text: str) -> str:
    """Replace characters beyond ASCII by LaTeX commands; those without one by their code point, as ``U+4E2D``."""
    return re.sub(r"[^\x00-\x7f]", lambda match: _command(match[0]), text)


def _command(character: str) -> str:
    if character in _COMMANDS:
        return _COMMANDS[character]
    decomposed = unicodedata.normalize("NFD", character)
    letter, marks = decomposed[0], decomposed[1:]
    if letter.isascii() and marks and all(mark in _ACCENTS for mark in marks):
        for mark in marks:
            letter = f"\\{_ACCENTS[mark]}{{{letter}}}"
        return letter
    return f"U+{ord(character):04X}"
