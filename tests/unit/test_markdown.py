"""Text from others is plain text on Markdown pages: nothing of it becomes HTML, a link, an image or a block."""

from __future__ import annotations

import pytest

from fairseq_sharing.markdown import code_block, plain

EVIL = "x\n```\n<script>a</script> [b](javascript:c) ![](http://d) | `e` *f* &lt; \\<g> \x1b[2J\n# H"


def test_plain_text_has_no_active_characters():
    text = plain(EVIL)
    assert "\n" not in text
    assert "\x1b" not in text
    for index, character in enumerate(text):
        if character in "`*[]<>&|":
            before = text[:index]
            assert (len(before) - len(before.rstrip("\\"))) % 2 == 1, (character, before)


@pytest.mark.parametrize(
    "text", ["test_2016_flickr", "4,096 tokens x 2 = 8,192", "https://example.org/a.en", "torch 2.1+cpu"]
)
def test_usual_text_is_unchanged(text):
    assert plain(text) == text


@pytest.mark.parametrize("text", ["a", "a\n", "```", "````x", EVIL, "a\n   ```\n   b"])
def test_no_text_ends_its_code_block(text):
    first, *lines, last = code_block(text, "yaml").split("\n")
    fence = first.removesuffix("yaml")
    assert last == fence
    assert set(fence) == {"`"}
    assert len(fence) >= 3
    assert not any(fence in line for line in lines)
    assert "\n".join(lines) == text.removesuffix("\n")
