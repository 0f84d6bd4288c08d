"""Write plain values to checkpoints, and read numpy values from older files."""

from __future__ import annotations

import io
from argparse import Namespace
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.plain import to_plain
from fairseq_sharing.errors import SharingError

REBUILD = np.array([1]).__reduce__()[0]
ARRAYS = [
    np.array([434, 0, 7, -1]),
    np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3) / 3),
    np.array([1, 2], dtype=">i4"),
    np.array([True, False]),
    np.array(2.5),
    np.array([1 + 2j]),
    np.float64(8.517) / 3,
    np.float32(0.1),
    np.int64(-5),
    np.bool_(True),
]


@pytest.mark.parametrize("array", ARRAYS, ids=repr)
def test_array_is_written_as_plain_numbers(array, tmp_path):
    path = tmp_path / "file.pt"
    save_atomically({"model": {}, "array": array}, path)
    assert load_checkpoint(path)["array"] == array.tolist()
    assert torch.load(path, weights_only=True)["array"] == array.tolist(), "without this package's readers"


@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
@pytest.mark.parametrize("array", [array for array in ARRAYS if type(array) is not np.ndarray or array.ndim], ids=repr)
def test_array_in_an_older_file_is_read(array, core, tmp_path):
    """Read arrays of numpy 1 and numpy 2; averaging such files writes plain values."""
    path, plain = tmp_path / "file.pt", tmp_path / "plain.pt"
    torch.save({"model": {}, "array": array}, path)
    name = b"numpy._core.multiarray"
    assert name in path.read_bytes()
    if core == "numpy.core":
        content = io.BytesIO()
        torch.save({"model": {}, "array": array}, content, _use_new_zipfile_serialization=False)
        path.write_bytes(content.getvalue().replace(name, b"numpy.core.multiarray"))
    assert load_checkpoint(path)["array"] == array.tolist()
    save_atomically(load_checkpoint(path), plain)
    assert torch.load(plain, weights_only=True)["array"] == array.tolist()


class Crafted:
    """Object that is pickled as a function call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_array_whose_saved_flags_are_those_of_objects_is_read_as_numbers(tmp_path):
    """With numpy's own functions, the flags of the dtype would treat the numbers as addresses."""
    dtype = Crafted(np.dtype, ("i8", False, True), (3, "<", None, None, None, -1, -1, 63))
    state = (1, (2,), dtype, False, np.array([1, 2]).tobytes())
    torch.save({"model": {}, "array": Crafted(REBUILD, (np.ndarray, (0,), b"b"), state)}, tmp_path / "file.pt")
    assert load_checkpoint(tmp_path / "file.pt")["array"] == [1, 2]


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, {}], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array(["2026-01-01"], dtype="M8[D]"),
        Crafted(
            np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (10**9,), np.dtype("i8"), False, b"short")
        ),
        Crafted(np.fromfile, ("/dev/zero",)),
    ],
    ids=["objects", "records", "dates", "shorter than its header", "another function of numpy"],
)
def test_other_arrays_in_a_file_are_refused(array, tmp_path):
    torch.save({"model": {}, "array": array}, tmp_path / "file.pt")
    with pytest.raises(SharingError, match=r"not a readable checkpoint|could execute code"):
        load_checkpoint(tmp_path / "file.pt")


def test_containers_become_plain_and_tensors_stay():
    weight = torch.ones(2)
    state = OrderedDict(weight=weight)
    state._metadata = {"": {"version": 1}}
    given = {
        "model": state,
        np.int64(3): (np.float64(0.5), [np.arange(2)], {np.int64(1)}),
        "cfg": {"model": Namespace(lr=[np.float64(0.1)]), "task": OmegaConf.create({"lang": "en", "beam": [1, 2]})},
        "counts": defaultdict(int, a=1),
        "size": torch.Size([2, 3]),
    }
    plain = to_plain(given)
    assert plain == {
        "model": state,
        3: (0.5, [[0, 1]], {1}),
        "cfg": {"model": Namespace(lr=[0.1]), "task": {"lang": "en", "beam": [1, 2]}},
        "counts": {"a": 1},
        "size": torch.Size([2, 3]),
    }
    assert plain["model"]["weight"] is weight
    assert plain["model"]._metadata == {"": {"version": 1}}
    assert type(plain["model"]) is OrderedDict
    assert type(plain["counts"]) is type(plain["cfg"]["task"]) is dict
    assert type(plain["size"]) is torch.Size
    assert type(plain[3][0]) is float


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    save_atomically({"model": {"weight": 1}}, path)
    with pytest.raises(SharingError) as caught:
        save_atomically({"model": {}, "extra_state": {"task": io.StringIO}}, path)
    assert str(caught.value) == (
        f"{path}: not written, because it could not be read again: it would contain _io.StringIO; "
        "allowed: tensors and plain values"
    )
    assert load_checkpoint(path) == {"model": {"weight": 1}}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint_last.pt"]


def test_a_missing_folder_is_created(tmp_path):
    save_atomically({"model": {}}, tmp_path / "new" / "folder" / "a.pt")
    assert load_checkpoint(tmp_path / "new" / "folder" / "a.pt")["model"] == {}
    average_checkpoints([tmp_path / "new" / "folder" / "a.pt"], tmp_path / "other" / "b.pt")
    assert (tmp_path / "other" / "b.pt").is_file()
