"""The tokenizer of a model trained with fairseq-sharing: the recipe's Moses rules, then BPE.

It differs from ``FSMTTokenizer`` in the rules before BPE, which that class fixes to aggressive dashes and escaped
characters. Load with ``AutoTokenizer.from_pretrained(folder, trust_remote_code=True)``. It requires sacremoses.
Tested with transformers 5.24.0.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import FSMTTokenizer

# Characters that some programs treat as the end of a line; they were replaced by spaces in the training data.
_LINE_BREAKS = re.compile("[\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")


class FairseqSharingTokenizer(FSMTTokenizer):
    """Splits sentences into the subwords of the training data.

    Args:
        rules: how the data was tokenized: ``name`` (moses or none), ``normalize``, ``aggressive_dashes``, ``escape``
            and ``lowercase``.
        options: arguments of FSMTTokenizer.
    """

    def __init__(self, *args: Any, rules: dict[str, Any], **options: Any):
        self.rules = rules
        super().__init__(*args, rules=rules, **options)

    def moses_pipeline(self, text: str, lang: str) -> str:
        """Normalize the punctuation of a sentence.

        Args:
            text: the sentence.
            lang: language code.
        """
        text = _LINE_BREAKS.sub(" ", text)
        return self.moses_punct_norm(text, lang) if self.rules["name"] == "moses" and self.rules["normalize"] else text

    def moses_tokenize(self, text: str, lang: str) -> list[str]:
        """Split a sentence into words.

        Args:
            text: the sentence.
            lang: language code.
        """
        if self.rules["name"] == "moses":
            if lang not in self.cache_moses_tokenizer:
                self.cache_moses_tokenizer[lang] = self.sm.MosesTokenizer(lang=lang)
            text = self.cache_moses_tokenizer[lang].tokenize(
                text,
                aggressive_dash_splits=self.rules["aggressive_dashes"],
                escape=self.rules["escape"],
                return_str=True,
            )
        return (text.lower() if self.rules["lowercase"] else text).split()

    def moses_detokenize(self, tokens: list[str], lang: str) -> str:
        """Join words to a sentence.

        Args:
            tokens: the words.
            lang: language code.
        """
        if self.rules["name"] != "moses":
            return " ".join(tokens)
        if lang not in self.cache_moses_detokenizer:
            self.cache_moses_detokenizer[lang] = self.sm.MosesDetokenizer(lang=lang)
        return self.cache_moses_detokenizer[lang].detokenize(tokens, unescape=self.rules["escape"])
