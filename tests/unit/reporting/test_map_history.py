"""Runs whose map changed: results, tables, figures, and their final map as options."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_results import result, write
from scheduled_training import TrainingBatches, changes, make_trainer, train
from tiny_models import build

from fairseq_sharing.commands import main
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.evaluate import _map_history
from fairseq_sharing.layer_map import make_layer_map
from fairseq_sharing.reporting.map_history import _spans
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows
from fairseq_sharing.reporting.tables import summary
from fairseq_sharing.schedules.replay import final_map_options


def stack(labels, frozen=()):
    return {"layer_map": list(labels), "frozen": list(frozen)}


def changing(seed: int = 1, **changes):
    """Make a result of a run that started with frozen layers and changed its map twice."""
    maps = [((0, 1), (1,)), ((0, 0), ()), ((0, 1), ())]
    moments = [{"encoder": stack(*m), "decoder": stack(*m), "parameters": 10 + i} for i, m in enumerate(maps)]
    steps = [{"update": at, "reason": "decision", "after": m} for at, m in zip((100, 250), moments[1:], strict=True)]
    history = {"start": moments[0], "changes": steps}
    return result("dlt", "none", seed, schedule="dynamic", mean_parameters=900, map_history=history, **changes)


def test_spans_list_the_sets_of_a_layer_between_changes():
    content = changing(updates=400)
    assert _spans(content, "encoder", 0) == [(0, 400, 0)]
    assert _spans(content, "encoder", 1) == [(0, 100, None), (100, 250, 0), (250, 400, 1)]


def test_report_draws_maps_over_time_and_shows_mean_parameters(tmp_path):
    other = {"encoder": [0, 0], "decoder": [0, 1]}
    folder = write(tmp_path, result("vanilla"), changing(1), changing(2, layer_map=other))
    report = write_report(folder)
    assert (folder / "map_history.png").read_bytes().startswith(b"\x89PNG")
    assert "map_history.png" in (folder / "index.html").read_text() + (folder / "table.md").read_text()
    headers, cells = summary(report.rows)
    column = headers.index("Mean unique parameters")
    assert [line[0] for line in cells] == ["Vanilla", "Dynamic tying"]
    assert [line[column] for line in cells] == ["1,246,912", "900"]


def test_without_changes_neither_figure_nor_column_is_shown(tmp_path):
    report = write_report(write(tmp_path, result("vanilla")))
    assert "map_history.png" not in {file.name for file in report.files}
    assert "Mean unique parameters" not in summary(report.rows)[0]


def test_seeds_that_found_other_maps_are_one_row_with_ranges(tmp_path):
    one, other = (changing(seed, parameters={"unique": 100 * seed, "effective": 900}) for seed in (1, 2))
    (row,) = read_rows(write(tmp_path, one, other))
    assert row.parameters("unique") == "100 to 200"
    assert row.parameters("effective") == "900"


def test_a_result_records_the_changes_of_its_run(data_dir):
    trainer = make_trainer(data_dir, "--sharing-schedule=unshare", "--unshare-at=2", sharing="universal")
    trainer.task._loss.batches = TrainingBatches()
    train(trainer, 4)
    history = _map_history({"extra_state": trainer.task.get_checkpoint_dict()})
    assert json.dumps(history)
    assert history["schedule"] == "unshare"
    assert history["map_history"]["start"]["encoder"]["layer_map"] == [0, 0, 0, 0]
    assert [c["update"] for c in history["map_history"]["changes"]] == [2]
    before, after = (changes(trainer)[0][moment]["parameters"] for moment in ("before", "after"))
    # Counted after each of 4 updates, the second of which untied.
    assert history["mean_parameters"] == round((before + 3 * after) / 4)
    assert _map_history({"extra_state": {}}) == {}


def test_final_map_of_a_run_gives_the_same_model(tmp_path, monkeypatch, capsys):
    model = build("pre", sharing="custom", layer_map="0,1,1,0,2,2", decoder_sharing="universal")
    file = tmp_path / "checkpoint_last.pt"
    torch.save({"model": model.state_dict()}, file)
    options = final_map_options(file)
    for name in ("encoder", "decoder"):
        labels = options[f"{name}_layer_map"].strip("'")
        assert make_layer_map(options[f"{name}_sharing"], 6, custom=labels) == model.sharing[name].layer_map
    monkeypatch.chdir(tmp_path)
    assert main(["train", "changing_sharing", "row=dlt_final", "--map-of", str(file), "--dry-run"]) == 0
    words = capsys.readouterr().out.split()
    assert words[words.index("--encoder-layer-map") + 1] == "0,1,1,0,2,2"
    assert words[words.index("--decoder-layer-map") + 1] == "0,0,0,0,0,0"
    with pytest.raises(SharingError, match="no such checkpoint"):
        final_map_options(tmp_path / "nothing.pt")
    with pytest.raises(SharingError, match="no readable checkpoint found"):
        final_map_options(tmp_path / "..")
