"""Parts of a text that are made one by one, with an index of the complete ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fairseq_sharing.documents import Schema, is_text, mapping_of, read_json
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import atomic_write, sha256

INDEX = "index.json"
_FIELDS: Schema = {"key": (is_text, "text"), "shards": (mapping_of(is_text), "a mapping from file to SHA-256")}


class Shards:
    """The shards in a folder.

    Each is written atomically, then the index. A process that is killed loses only shards that are not in the index.

    Args:
        folder: the folder; shards of another key in it are removed.
        key: identifies what the shards are made from.
    """

    def __init__(self, folder: Path, key: str):
        self._folder, self._key = folder, key
        self._complete = self._read()
        if not self._complete:
            shutil.rmtree(folder, ignore_errors=True)

    def __contains__(self, number: int) -> bool:
        return _name(number) in self._complete

    def __len__(self) -> int:
        return len(self._complete)

    def add(self, number: int, content: bytes) -> None:
        """Write a shard."""
        path = self._folder / _name(number)
        with atomic_write(path) as file:
            file.write(content)
        self._complete[path.name] = sha256(path)
        with atomic_write(self._folder / INDEX) as file:
            file.write(json.dumps({"key": self._key, "shards": self._complete}, sort_keys=True).encode())

    def join(self, output: Path) -> None:
        """Concatenate all shards to one file."""
        with atomic_write(output) as file:
            for name in sorted(self._complete):
                with (self._folder / name).open("rb") as shard:
                    shutil.copyfileobj(shard, file)

    def _read(self) -> dict[str, str]:
        """Return the complete shards of the key; those that are missing or damaged are made again."""
        try:
            index = read_json(self._folder / INDEX, _FIELDS, "an index of shards", tuple(_FIELDS))
        except (OSError, SharingError):
            return {}
        if index["key"] != self._key:
            return {}
        paths = {name: self._folder / Path(name).name for name in index["shards"]}
        return {
            name: digest
            for name, digest in index["shards"].items()
            if paths[name].is_file() and sha256(paths[name]) == digest
        }


def _name(number: int) -> str:
    return f"{number:07d}"
