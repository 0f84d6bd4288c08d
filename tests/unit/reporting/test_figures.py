"""Figures: exact positions, distinct shapes, labels without overlap, axes that cover their values, equal files."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from evaluation_results import result, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from fairseq_sharing.reporting import figures
from fairseq_sharing.reporting.expert_figure import expert_use
from fairseq_sharing.reporting.layer_map_figure import layer_maps
from fairseq_sharing.reporting.learning_curves import learning_curves
from fairseq_sharing.reporting.map_history import draw_map_history
from fairseq_sharing.reporting.plot_style import new_figure, row_styles, save_figure
from fairseq_sharing.reporting.point_labels import _ranges
from fairseq_sharing.reporting.results import read_rows
from fairseq_sharing.reporting.score_figures import score_by_parameters, score_by_speed

RESULTS = Path(__file__).parents[3] / "results"


def _panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def _points(axes):
    """Return the marker line of each point, in the order of the rows."""
    return [container.lines[0] for container in axes.containers]


def _marker_box(line):
    x, y = line.axes.transData.transform(line.get_xydata()[0])
    half = (line.get_markersize() + line.get_markeredgewidth()) / 2 * line.figure.dpi / 72
    return Bbox([[x - half, y - half], [x + half, y + half]])


@pytest.fixture
def crowded(tmp_path):
    """Rows with almost the same size and scores, as in a study at equal parameters."""
    size = {"effective": 1}
    rows = [
        result(f"{name}_{layers}", name, 1, bleu, parameters={**size, "unique": unique})
        for name, layers, unique, bleu in (
            ("none", 6, 1_241_088, 30.0),
            ("sequence", 12, 1_244_928, 30.0),
            ("cycle", 12, 1_244_928, 30.02),
            ("cycle", 18, 1_246_848, 30.5),
            ("cycle_rev", 18, 1_246_848, 29.0),
            ("universal", 6, 3_858_432, 35.0),
        )
    ]
    return read_rows(write(tmp_path / "crowded", *rows))


def test_every_point_is_at_its_data_and_inside_of_the_axes(crowded):
    figure = score_by_parameters(crowded, "bleu")
    (panel,) = _panels(figure)
    points = _points(panel)
    assert [point.get_xydata()[0].tolist() for point in points] == [
        [row["parameters"]["unique"], row.score("test_2016_flickr", "bleu").mean] for row in crowded
    ]
    frame = panel.get_window_extent()
    for point in points:
        assert point.get_transform() == panel.transData, "a point was shifted"
        box = _marker_box(point)
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1


def test_error_bars_are_standard_deviations_over_seeds(tmp_path):
    sizes = [{"parameters": {"unique": unique, "effective": 900}} for unique in (100, 300)]
    seeds = [result("dlt", "none", seed, 20.0 + seed, schedule="dynamic", **sizes[seed - 1]) for seed in (1, 2)]
    rows = read_rows(write(tmp_path, result("vanilla", bleu=30.0), *seeds))
    (panel,) = _panels(score_by_parameters(rows, "bleu"))
    single, several = panel.containers
    assert single.lines[2] == (), "an error bar for one seed"
    horizontal, vertical = (bar.get_segments()[0].tolist() for bar in several.lines[2])
    assert horizontal == [[pytest.approx(200 - 141.42, abs=0.1), 21.5], [pytest.approx(200 + 141.42, abs=0.1), 21.5]]
    assert vertical == [[200, pytest.approx(21.5 - 0.5**0.5)], [200, pytest.approx(21.5 + 0.5**0.5)]]
    captions = dict(figures.draw(rows, tmp_path))
    for name in ("bleu_by_parameters.png", "bleu_by_speed.png"):
        assert "Error bars: standard deviation over seeds. Rows with one seed have none." in captions[name]
    assert "unique parameters, at the end of training," in captions["bleu_by_parameters.png"]


def test_single_seeds_have_no_error_bars(crowded, tmp_path):
    captions = dict(figures.draw(crowded, tmp_path))
    assert "No error bars: one seed per row." in captions["bleu_by_parameters.png"]
    assert not any("interval" in caption for caption in captions.values())


@pytest.mark.parametrize("study", ["changing_sharing", "news_commentary_cpu", "wmt16"])
def test_no_two_rows_share_their_shape(study, tmp_path):
    if study == "wmt16":  # more rows of one strategy than markers
        rows = read_rows(write(tmp_path, *(result(f"cycle_{i}", "cycle") for i in range(24))))
    else:
        rows = read_rows(RESULTS / study)
    shapes = [(style["marker"], style["fillstyle"]) for style in row_styles(rows)]
    assert len(set(shapes)) == len(rows)


def test_a_row_has_the_same_number_and_shape_in_every_figure(crowded):
    speeds = {row.run for row in crowded[1:]}
    by_size, by_speed = score_by_parameters(crowded, "bleu"), score_by_speed(crowded, "bleu", speeds)
    sizes, speeds = (
        {text.get_text(): handle.get_marker() for text, handle in zip(legend.texts, legend.legend_handles, strict=True)}
        for legend in (by_size.legends[0], by_speed.legends[0])
    )
    assert len(speeds) == len(crowded) - 1
    assert speeds.items() <= sizes.items()


@pytest.mark.parametrize("study", ["crowded", "changing_sharing", "multi30k"])
def test_labels_name_every_point_without_overlap(study, request):
    rows = request.getfixturevalue("crowded") if study == "crowded" else read_rows(RESULTS / study)
    figure = score_by_parameters(rows, "bleu")
    renderer = FigureCanvasAgg(figure).get_renderer()
    for panel in _panels(figure):
        labels = [text for text in panel.texts if isinstance(text, Annotation)]
        points = [tuple(point.get_xydata()[0]) for point in _points(panel)]
        numbers = []
        for label in labels:
            assert label.xy in points, "a label that points at no point"
            for part in label.get_text().split(", "):
                first, _, last = part.partition("-")
                numbers += range(int(first), int(last or first) + 1)
        assert sorted(numbers) == list(range(1, len(rows) + 1))
        for label in labels:
            label.update_positions(renderer)
        boxes = [Text.get_window_extent(label, renderer) for label in labels]  # without the line to the point
        assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
        markers = [_marker_box(point) for point in _points(panel)]
        assert not [(box, marker) for box in boxes for marker in markers if box.overlaps(marker)]
        frame = panel.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
        assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_numbers_of_coinciding_points_are_ranges():
    assert _ranges([1, 2, 6, 7, 8, 11]) == "1, 2, 6-8, 11"
    assert _ranges([3]) == "3"


def test_small_differences_are_not_magnified(tmp_path):
    untrained = [result("vanilla", bleu=0.0003), result("cycle", "cycle", 1, 0.0005)]
    for content in untrained:
        content["scores"]["test_2016_flickr"]["bleu_interval"] = [0.0, 0.001]
    rows = read_rows(write(tmp_path, *untrained))
    (panel,) = _panels(score_by_parameters(rows, "bleu"))
    low, high = panel.get_ylim()
    assert low < 0 <= 0.0003
    assert high > 0.5


def test_language_models_are_drawn_by_perplexity(tmp_path):
    scores = {"valid": {"segments": 10, "perplexity": 99.5}}
    rows = read_rows(write(tmp_path, result("dense", scores=scores), result("moeut", "cycle", scores=scores)))
    captions = dict(figures.draw(rows, tmp_path, "perplexity"))
    assert captions["perplexity_by_parameters.png"].startswith("perplexity against unique parameters")
    assert _panels(score_by_parameters(rows, "perplexity"))[0].get_ylabel() == "perplexity (lower is better)"


def test_curves_show_loss_and_perplexity_on_axes_that_cover_them(tmp_path):
    valid = {
        "updates": [100, 200, 300, 400, 500],
        "loss": [9.0, 7.0, None, 5.0, 4.0],
        "perplexity": [500.0, 90.0, 30.0, 20.0, 10.0],
    }
    rows = read_rows(write(tmp_path, result(valid=valid), result(seed=2, valid=valid)))
    panels = _panels(learning_curves(rows))
    assert [panel.get_ylabel() for panel in panels] == ["validation loss (base 2)", "validation perplexity"] * 2
    assert [panel.get_title() for panel in panels] == ["all updates"] * 2 + ["second half of the updates"] * 2
    assert panels[0].lines[0].get_xydata().tolist() == [[100, 9], [200, 7], [400, 5], [500, 4]]
    assert len(panels[0].lines) == 2, "one line per seed"
    for panel in panels:
        (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
        for x, y in panel.lines[0].get_xydata():
            assert x < left or (x <= right and low < y < high)
    assert panels[2].get_ylim()[1] < 9, "the second half is enlarged"
    (loss, perplexity) = panels[:2]
    assert (loss.get_yscale(), perplexity.get_yscale()) == ("linear", "log")


def test_expert_colors_cover_the_values_and_no_more():
    router = {"choices": [4, 4, 16], "evenness": 0.9, "dead": 0.0}
    even = {"choices": [8, 8, 8], "evenness": 1.0, "dead": 0.0}
    figure = expert_use({"decoder_ffn_1": router, "decoder_self_attn_value_1": even}, {})
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in images] == [(0, 2.0), (0, 2.0)]


def test_map_histories_of_different_lengths_share_their_axis(tmp_path):
    layers = {"layer_map": [0, 0], "frozen": []}
    maps = {"encoder": layers, "decoder": layers, "parameters": 10}
    history = {"start": maps, "changes": [{"update": 50, "reason": "decision", "after": maps}]}
    changing = {"schedule": "unshare", "map_history": history}
    runs = [result(name, "none", 1, updates=updates, **changing) for name, updates in (("a", 100), ("half", 200))]
    figure = draw_map_history(read_rows(write(tmp_path, *runs)))
    assert {panel.get_xlim() for panel in _panels(figure)} == {(0, 200)}


@pytest.mark.parametrize("study", ["toy", "changing_sharing"])
def test_no_text_of_the_layer_maps_is_cut_off(study):
    figure = layer_maps(read_rows(RESULTS / study))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert min(box.x0 for box in boxes) >= 0
    assert min(box.y0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    assert max(box.y1 for box in boxes) <= figure.bbox.height


def _plot(folder):
    figure = new_figure(3, 2)
    figure.subplots().plot([1, 2], [3, 4], label="a line")
    save_figure(figure, folder, "plot")


def test_equal_figures_give_equal_files_without_dates(tmp_path):
    _plot(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    code = f"from pathlib import Path\nfrom test_figures import _plot\n_plot(Path({str(other)!r}))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    )
    assert sorted(file.suffix for file in other.iterdir()) == [".pdf", ".png", ".svg"]
    for file in other.iterdir():
        content = file.read_bytes()
        assert content == (tmp_path / file.name).read_bytes(), file.name
        assert b"CreationDate" not in content
        assert b"dc:date" not in content
        assert matplotlib.__version__.encode() not in content
    assert b"/Type3" not in (tmp_path / "plot.pdf").read_bytes()


def test_a_full_disk_names_the_figure_and_keeps_the_old_one(tmp_path, small_disk):
    _plot(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    small_disk(1_000)
    with pytest.raises(OSError, match="File too large") as error:
        _plot(tmp_path)
    assert error.value.filename == str(tmp_path / "plot.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
