"""Read the sentences of IWSLT's files: tagged training texts, and test sets in XML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import unescape

MARKUPS = ("iwslt_tags", "iwslt_xml")

_ABOUT_THE_TALK = re.compile("<(url|talkid|keywords)>")
_KEPT = re.compile("</?(title|description)>")
_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*(.*?)\s*</seg>')


def sentences(lines: Iterable[str], markup: str) -> Iterator[str]:
    """Extract the sentences of a text with markup.

    Args:
        lines: lines of the file.
        markup: ``iwslt_tags``: every line is a sentence, except for those with a URL, a talk's number or keywords;
            titles and descriptions are kept without their tags. ``iwslt_xml``: the sentences are the ``seg`` elements,
            one per line, with plain apostrophes. Empty: every line is a sentence.

    Yields:
        The sentences.

    Source:
        Which lines count, and the apostrophes: prepare-iwslt14.sh of fairseq, from which most published results come.
    """
    for line in lines:
        if markup == "iwslt_xml":
            if found := _SEGMENT.search(line):
                yield unescape(found[1], {"&quot;": '"', "&apos;": "'"}).replace("\u2019", "'")
        elif markup == "iwslt_tags":
            if not _ABOUT_THE_TALK.search(line):
                yield _KEPT.sub("", line)
        else:
            yield line
