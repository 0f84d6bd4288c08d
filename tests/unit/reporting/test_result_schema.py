"""Names and texts of received results cannot become code, links, formulas, markup or paths in a report."""

from __future__ import annotations

import copy
import json

import pytest
from evaluation_results import result, write

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting.result_schema import is_plain
from fairseq_sharing.reporting.results import read_result

ATTACKS = (
    "<script>alert(1)</script>",  # HTML
    "[x](javascript:alert(1))",  # Markdown
    "a|b",
    "`x`",
    "\\input{/etc/passwd}",  # LaTeX
    "x\n\\input{y}",  # leaves a comment
    "$x$",
    '=cmd|"/c calc"!A1',  # CSV
    "+1",
    "@SUM(A1)",
    "-1+1",
    "\t=1",
    "\x1b[2J",  # terminal
    "a\x9bb",
    "a\u2028b",
    "a\u202eb",  # reverses the rest of the line
    "../x",
)
PLACES = {
    "run": ("run",),
    "dataset": ("dataset",),
    "arch": ("arch",),
    "strategy": ("sharing", "encoder"),
    "schedule": ("schedule",),
    "signature": ("scores", "test_2016_flickr", "signature", "bleu"),
    "device": ("device", "name"),
    "commit": ("commit",),
    "version": ("versions", "torch"),
    "checkpoint": ("checkpoint", "averaged", 0),
    "search": ("generation", "beam"),
    "key of scores": ("scores",),
    "key of sharing": ("sharing",),
    "key of layers": ("layers",),
    "key of versions": ("versions",),
    "key of device": ("device",),
    "key of signatures": ("scores", "test_2016_flickr", "signature"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", PLACES)
def test_such_texts_are_refused_by_name(tmp_path, place, attack):
    if place == "signature" and attack in ("a|b", "../x", "+1", "-1+1"):
        return  # as in sacreBLEU's signatures, which are no cells of a table
    content = copy.deepcopy(result("cycle", "cycle", p_value=0.5))
    *path, last = PLACES[place]
    part = content
    for key in path:
        part = part[key]
    if place.startswith("key"):
        part[last][attack] = next(iter(part[last].values()), 1)
    else:
        part[last] = attack
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    with pytest.raises(SharingError) as error:
        read_result(file)
    assert str(error.value).startswith(f"{file}: not a result of evaluate: {PLACES[place][0]} is ")
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("seed", value) for value in (True, -1, 1.5, "1", None)),
        *(("layers", value) for value in ([], {"encoder": "6"}, {"encoder": True}, None)),
        *(("parameters", value) for value in ({}, {"unique": 1}, {"unique": "1", "effective": 1}, 7)),
        *(("scores", value) for value in ([], {"test": {}}, {"test": {"bleu": 1}}, {"test": []})),
        ("layer_map", {"encoder": [0, -1]}),
        ("sharing", {}),
        ("tokens_per_second", "fast"),
        ("tokens_per_second", -1),
        ("valid", {"loss": ["x"]}),
        ("device", []),
        ("command", "rm -r"),
        ("examples", [{"source": "a"}]),
        ("map_history", {"start": None, "changes": [{"update": 1}]}),
        ("mean_parameters", "many"),
    ],
)
def test_wrong_types_are_refused_by_name(tmp_path, field, value):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({**result(), field: value}))
    with pytest.raises(SharingError, match=f"not a result of evaluate: {field} is "):
        read_result(file)


@pytest.mark.parametrize(
    "name", ["AMD EPYC", "Intel(R) Xeon(R) CPU @ 2.20GHz", "11th Gen Intel(R) i7-1165G7", "Zürich"]
)
def test_names_of_processors_are_allowed(tmp_path, name):
    assert is_plain(name)
    write(tmp_path, result(device={"kind": "cpu", "name": name, "count": 2, "threads": 1}))
    assert read_result(tmp_path / "vanilla-seed1.json")["device"]["name"] == name


def test_examples_and_commands_may_be_any_text(tmp_path):
    example = {"test": "a", "source": "<b>", "reference": "=1", "hypothesis": "\x1b[2J"}
    write(tmp_path, result(examples=[example], command=["fairseq-train", "a b", "$x"]))
    read = read_result(tmp_path / "vanilla-seed1.json")
    assert read["examples"] == [example]
