"""The flags of the task with which a test set is translated."""

from __future__ import annotations

import pytest

from fairseq_sharing.evaluation.hypotheses import task_words

SEVERAL = {"lang_pairs": ["en-de", "de-en"], "langs": "en,de", "decoder_langtok": True, "encoder_langtok": "tgt"}


@pytest.mark.parametrize(
    ("train", "flags"),
    [
        ({}, []),
        ({"decoder_langtok": True}, []),
        ({"max_source_positions": 64, "truncate_source": True}, ["--max-source-positions", "64", "--truncate-source"]),
        (
            {**SEVERAL, "lang_tok_replacing_bos_eos": False},
            ["--lang-pairs", "en-de,de-en", "--langs", "en,de", "--encoder-langtok", "tgt", "--decoder-langtok"],
        ),
    ],
)
def test_a_model_is_translated_with_the_flags_of_its_task(train, flags):
    assert task_words({"task": "some_task", **train}) == ["--task", "some_task", *flags]
