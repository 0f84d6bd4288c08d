from pathlib import Path

import numpy
import pytest
from fairseq.data import Dictionary, data_utils

from fairseq_sharing.preparation import binarize as binarize
from fairseq_sharing.preparation.binarize import read_dictionary, token_type, write_dictionary, write_index
from fairseq_sharing.preparation.transform import number_chunk


def test_the_dictionary_is_the_one_that_fairseq_saves(tmp_path: Path):
    counts = {"b": 3, "a": 3, "@@ä": 7, "<unk>": 9, "</s>": 2, "madeupword0001": 1}
    reference = Dictionary()
    for word, count in counts.items():
        reference.add_symbol(word, n=count)
    reference.finalize(threshold=0, padding_factor=8)
    reference.save(str(tmp_path / "reference"))
    assert write_dictionary(counts, [tmp_path / "one", tmp_path / "two"]) == len(reference) - reference.nspecial
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "reference").read_bytes()
    assert read_dictionary(tmp_path / "one") == reference.indices


@pytest.mark.parametrize("size", [20, 70_000])
def test_fairseq_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(binarize, "_BLOCK", 2)
    write_dictionary({f"w{number}": size - number for number in range(size)}, [tmp_path / "dict.txt"])
    last = f"w{size - 1}"
    text = f"w0 w1 w2\n\nw1 new </s> w0\n{last}\n"
    (tokens, lengths), _ = number_chunk(tmp_path / "dict.txt", str(size), (text.encode(),))
    (tmp_path / "train.bin").write_bytes(tokens)
    (tmp_path / "lengths").write_bytes(lengths)
    write_index(tmp_path / "lengths", token_type(len(read_dictionary(tmp_path / "dict.txt"))), tmp_path / "train.idx")
    data = data_utils.load_indexed_dataset(str(tmp_path / "train"), None, "mmap")
    assert [sentence.tolist() for sentence in data] == [[4, 5, 6, 2], [2], [5, 3, 2, 4, 2], [size + 3, 2]]
    assert numpy.array_equal(data.sizes, [4, 1, 5, 2])
