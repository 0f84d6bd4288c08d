import base64
import csv
import json
import re
from html.parser import HTMLParser

import pytest
from evaluation_results import BLEU_SIGNATURE, CHRF_SIGNATURE, result, write
from rich.console import Console

from fairseq_sharing.colors import ink, set_colors
from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting import figures, tables
from fairseq_sharing.reporting.comparison_plan import ComparisonPlan
from fairseq_sharing.reporting.conclusions import conclude
from fairseq_sharing.reporting.expert_figure import expert_use
from fairseq_sharing.reporting.formats import terminal
from fairseq_sharing.reporting.notes import notes
from fairseq_sharing.reporting.recipes import differences
from fairseq_sharing.reporting.report import write_report
from fairseq_sharing.reporting.results import read_rows

PICTURES = ["bleu_by_parameters.png", "bleu_by_speed.png", "learning_curves.png", "layer_maps.png"]


def _study(folder):
    return write(
        folder,
        result("vanilla", "none", 1, 30.0),
        result("vanilla", "none", 2, 31.0),
        result("cycle", "cycle", 1, 32.25),
    )


@pytest.fixture
def study(tmp_path):
    """A folder of results to report on."""
    return _study(tmp_path / "study")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report to read."""
    return write_report(_study(tmp_path_factory.mktemp("reported") / "study"))


@pytest.fixture
def no_pictures(monkeypatch):
    """Skip the figures, which take long and are not tested here."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])


class _Page(HTMLParser):
    """Collects a page's resources and its table cells."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.cells, self.text, self._stack = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._stack.append(tag)
        attributes = dict(attributes)
        self.sources += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            assert attributes["alt"], "a picture without a description"
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        self.text += data
        if self._stack and self._stack[-1] == "td":
            self.cells[-1] += data

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass


def test_every_file_of_the_report_is_written(reported):
    vectors = [name.replace(".png", suffix) for suffix in (".pdf", ".svg") for name in PICTURES]
    names = ["table.md", "table.csv", "table.tex", "index.html", *PICTURES, *vectors]
    assert [file.name for file in reported.files] == names
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    for file in reported.files:
        assert file.stat().st_size > 0
        assert file.read_bytes().startswith(starts.get(file.suffix, b""))


def test_equal_results_give_equal_files(reported, study):
    first = {file.name: file.read_bytes() for file in reported.files}
    assert {file.name: file.read_bytes() for file in write_report(study).files} == first


def _lines(text):
    """The cells of each line of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if "|" in line]


def test_markdown_has_means_updates_notes_and_signature(reported):
    text = (reported.files[0].parent / "table.md").read_text(encoding="utf-8")
    rows = _lines(text)
    assert rows[0][:5] == ["Model", "M", "N", "Unique parameters", "Effective parameters"]
    assert rows[0][5:] == ["Tokens/s", "Updates", "n", "BLEU test_2016_flickr"]
    assert rows[2][:5] == ["Vanilla", "2", "2", "1,246,912", "2,000,000"]
    assert rows[2][5:] == ["12,150 ± 71", "3,840", "2", "30.50 ± 0.71"]
    assert rows[3] == ["Cycle", "2", "4", "1,246,912", "2,000,000", "12,100", "3,840", "1", "32.25"]
    assert f"sacreBLEU signature for BLEU: {BLEU_SIGNATURE}" in text
    assert "average of the last 2 epoch checkpoints, beam 5, length penalty 1.0" in text
    assert "Version of fairseq-sharing: 0123abc." in text
    for name in PICTURES:
        assert f"]({name})" in text


def test_a_row_with_one_seed_makes_no_statement(reported):
    text = (reported.files[0].parent / "table.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"## Comparison with vanilla: BLEU test_2016_flickr\n(.*?)##", text, re.DOTALL)
    cycle = next(line for line in _lines(section) if line[0] == "cycle")
    assert cycle == ["cycle", "1", "32.25", "-", "-", "-", "1 seed: no statement about the method"]
    assert "p=" not in text


def test_csv_has_the_unrounded_numbers(reported):
    study = reported.files[0].parent
    with (study / "table.csv").open(encoding="utf-8", newline="") as file:
        vanilla, cycle = csv.DictReader(file)
    assert (vanilla["run"], vanilla["seeds"], vanilla["bleu"]) == ("vanilla", "1 2", "30.5")
    assert float(vanilla["bleu_deviation"]) == pytest.approx(0.5**0.5)
    assert (cycle["strategy"], cycle["chrf"], cycle["bleu_deviation"]) == ("cycle", "55.5", "")
    assert int(cycle["parameters_unique"]) == 1_246_912
    assert "p_values" not in cycle


def test_latex_escapes_and_aligns(reported):
    study = reported.files[0].parent
    text = (study / "table.tex").read_text(encoding="utf-8")
    assert r"BLEU test\_2016\_flickr" in text
    assert text.count(r"\\") == 6, "two tables of two lines"
    assert r"\begin{tabular}{lrrrrrrrr}" in text
    assert r"30.50 $\pm$ 0.71" in text
    assert text.isascii()
    assert "% Comparison with vanilla: BLEU test_2016_flickr" in text


def test_page_is_self_contained(reported):
    study = reported.files[0].parent
    page = _Page((study / "index.html").read_text(encoding="utf-8"))
    assert len(page.sources) == len(PICTURES)
    for source, name in zip(page.sources, PICTURES, strict=True):
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (study / name).read_bytes()
    assert "1 seed: no statement about the method" in page.cells
    assert "28.75 to 31.25" not in page.cells
    assert "30.75 to 33.50" in page.cells
    assert BLEU_SIGNATURE in page.text
    assert "fairseq-train data/multi30k/bin --arch transformer_sharing_tiny" in page.text


def test_only_results_with_examples_quote_sentences(study, no_pictures):
    write_report(study)
    assert "Example translations" not in (study / "index.html").read_text(encoding="utf-8")
    quoted = {"test": "test", "source": "the <b>dog</b>", "reference": "der Hund", "hypothesis": "der & Hund"}
    write(study, result("universal", "universal", examples=[quoted]))
    write_report(study)
    text = (study / "index.html").read_text(encoding="utf-8")
    assert "the &lt;b&gt;dog&lt;/b&gt;" in text
    assert "der &amp; Hund" in text
    assert "<b>" not in text


def test_runs_of_the_same_shape_are_distinguished_by_name(study):
    write(study, result("cycle_long", "cycle", updates=9000))
    rows = read_rows(study)
    assert tables.names(rows) == ["Vanilla", "Cycle", "Cycle, cycle_long"]
    assert tables.titles(rows)[2] == "Cycle, M=2, N=4, cycle_long"


@pytest.mark.parametrize(
    ("metric", "signature"),
    [("bleu", BLEU_SIGNATURE.replace("tok:13a", "tok:char")), ("chrf", CHRF_SIGNATURE.replace("2.6.0", "2.0.0"))],
)
def test_scores_with_different_signatures_are_refused_in_one_table(study, metric, signature):
    other = result("universal", "universal")
    its = other["scores"]["test_2016_flickr"]["signature"]
    expected = its[metric]
    its[metric] = signature
    write(study, other)
    with pytest.raises(SharingError) as caught:
        write_report(study)
    assert str(caught.value) == (
        f"{study}: {metric} has signature {expected} for vanilla-seed1 but {signature} for universal-seed1; score both "
        "with the same version and settings, or report them in separate folders"
    )
    assert not list(study.glob("table.*"))


def test_different_test_sets_and_seeds_decoded_differently_are_refused(study, no_pictures):
    short = result("universal", "universal")
    short["scores"]["test_2016_flickr"]["segments"] = 999
    write(study, short)
    with pytest.raises(SharingError, match=r"test_2016_flickr has 1,000 segments for vanilla-seed1 but 999 for univ"):
        write_report(study)
    (study / "universal-seed1.json").unlink()
    write(study, result("cycle", "cycle", 2, checkpoint={"averaged": ["checkpoint30.pt"]}))
    with pytest.raises(SharingError, match=r"cycle: seeds 1 and 2 differ in averaged checkpoints: 2 and 1; evaluate"):
        write_report(study)
    write(study, result("cycle", "cycle", 2, generation={"beam": 4, "lenpen": 1.0, "max_tokens": 1, "max_len_a": 0.0}))
    with pytest.raises(SharingError, match="cycle: seeds 1 and 2 differ in beam: 5 and 4"):
        write_report(study)
    write(study, result("cycle", "cycle", 2, generation={"beam": 5, "lenpen": 1.0, "max_tokens": 1, "max_len_a": 0.0}))
    assert len(write_report(study).rows) == 2


def test_p_values_of_old_results_are_ignored(tmp_path, no_pictures):
    old = result("cycle", "cycle", 1, 31.0)
    old["scores"]["test_2016_flickr"] |= {"p_value": 0.004, "baseline": "absent-seed1", "baseline_sha256": "0"}
    folder = write(tmp_path, result("vanilla"), old)
    write_report(folder)
    for file in folder.glob("[ti]*.*"):
        assert "0.004" not in file.read_text(encoding="utf-8")
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "- 1 seed: no statement about the method." in text
    assert "## Comparison" not in text


def test_different_decoding_of_rows_is_described(study):
    write(study, result("universal", "universal", generation={"beam": 4, "lenpen": 0.6, "test_lenpen": {"b": 1}}))
    rows = read_rows(study)
    lines = notes(rows, conclude(rows, ComparisonPlan("vanilla", "bleu")))
    assert any(
        line.startswith("universal: Decoded with") and "beam 4, length penalty 0.6, 1 for b" in line for line in lines
    )
    assert differences(rows) == ["", "beam 4, lenpen 0.6", ""]


def test_a_language_model_is_compared_by_perplexity(tmp_path, no_pictures):
    def model(run, sharing, seed, perplexity):
        scores = {"test": {"segments": 9, "tokens": 90, "words": 80, "perplexity": perplexity, "word_perplexity": 99.0}}
        content = result(run, sharing, seed, scores=scores)
        del content["generation"]  # a language model is not decoded
        return content

    folder = write(
        tmp_path,
        *(model("vanilla", "none", seed, 20.0 + seed / 10) for seed in (1, 2, 3)),
        *(model("cycle", "cycle", seed, 18.0 + seed / 10) for seed in (1, 2, 3)),
    )
    report = write_report(folder)
    assert report.conclusions.verdict(("cycle", "vanilla")) == "better"
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "Lower is better." in text
    assert "18.20 ± 0.10" in text
    assert "BLEU" not in text


def _experts():
    """Log entries of a model with two layers, one set each; the second layer never chose its last expert."""
    return {
        f"{stack}_{kind}_{layer}": {"choices": [4, 4, 6 * (layer == 1)], "evenness": 0.9, "dead": (layer - 1) / 3}
        for stack in ("encoder", "decoder")
        for kind in ("ffn", "self_attn_value")
        for layer in (1, 2)
    }


def test_use_of_experts_is_drawn_by_layer_and_repeat(tmp_path):
    banks = result("moeut", "universal", 1, arch="transformer_moeut_tiny", experts=_experts())
    report = write_report(write(tmp_path, result("vanilla", "none", 1), banks))
    assert [path.name for path in report.files if path.suffix == ".png"][-1] == "expert_use_moeut.png"
    assert "MoEUT (Universal)" in (tmp_path / "table.md").read_text()

    figure = expert_use(_experts(), {"encoder": [0, 0], "decoder": [0, 1]})
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "encoder: self-attention, values",
        "encoder: feed-forward",
        "decoder: self-attention, values",
        "decoder: feed-forward",
    ]
    assert [label.get_text() for label in panels[1].get_yticklabels()] == ["1: set 0, use 1", "2: set 0, use 2"]
    assert [label.get_text() for label in panels[3].get_yticklabels()] == ["1: set 0, use 1", "2: set 1, use 1"]
    assert panels[1].images[0].get_array().tolist() == [
        pytest.approx([12 / 14, 12 / 14, 18 / 14]),
        pytest.approx([1.5, 1.5, 0]),
    ]
    assert expert_use({"decoder_ffn_1": {"evenness": 1.0, "dead": 0.0}}, {}) is None, "choices were not logged"


def test_speeds_of_different_machines_are_not_compared(tmp_path):
    gpu = {"device": {"kind": "cuda", "name": "Some GPU", "count": 1}}
    results = [result("vanilla"), result("cycle", "cycle"), result("sequence", "sequence", **gpu)]
    folder = write(tmp_path, *results)
    pictures = dict(figures.draw(read_rows(folder), tmp_path))
    assert "Only runs trained on Some CPU, 2 CPU cores; other speeds" in pictures["bleu_by_speed.png"]
    write_report(folder)
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "vanilla, cycle on Some CPU, 2 CPU cores; sequence on Some GPU, 1 GPU. Tokens/s are not comparable" in text


def test_a_single_comparable_speed_is_not_drawn(tmp_path):
    rows = read_rows(write(tmp_path, result("vanilla"), result("cycle", "cycle", device={"kind": "cuda"})))
    assert "bleu_by_speed.png" not in dict(figures.draw(rows, tmp_path))


def test_a_result_without_log_has_no_curve_and_no_speed(tmp_path):
    bare = {"tokens_per_second": None, "valid": {"epoch": [], "updates": [], "loss": [], "perplexity": []}}
    report = write_report(write(tmp_path, result(**bare, device=None, versions=None, peak_memory_bytes=None)))
    assert [file.name for file in report.files if file.suffix == ".png"] == [PICTURES[0], PICTURES[3]]


def test_terminal_table_fits_eighty_columns(study):
    for seed in (1, 2):
        for name, sharing in (("vanilla", "none"), ("cycle", "cycle")):
            content = result(name, sharing, seed, 37.5)
            score = content["scores"]["test_2016_flickr"]
            content["scores"].update(test_2017_flickr=score, test_2017_mscoco=score)
            write(study, content)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = read_rows(study)
    for table in terminal(rows, conclude(rows, ComparisonPlan("vanilla", "bleu")), "A study"):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "Comparison with vanilla: BLEU, mean of 3 test sets" in text
    assert re.search(r"Cycle +2 +4 +1,246,912 +12,150 +3,840 +2 +37\.50 +37\.50 +37\.50", text)


def test_runs_are_collected_before_the_report(study, tmp_path, no_pictures):
    runs = tmp_path / "runs"
    for content in (result("universal", "universal"), result("sequence", "sequence")):
        run = runs / f"{content['run']}-seed1"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(content))
    assert len(write_report(study, [runs / "universal-seed1"]).rows) == 3
    assert [row.run for row in write_report(study, [runs]).rows] == ["vanilla", "universal", "sequence", "cycle"]
    assert (study / "universal-seed1.json").is_file()
    with pytest.raises(SharingError, match=r"no result\.json"):
        write_report(study, [tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"run": "../../evil"}, "a name without /"),
        ({"run": "/tmp/evil"}, "a name without /"),
        ({"seed": "1/../../../evil"}, "a whole number"),
    ],
)
@pytest.mark.parametrize("collected", [True, False])
def test_a_result_cannot_name_a_file_outside_of_the_folder(study, tmp_path, no_pictures, changes, allowed, collected):
    folder = tmp_path / "runs" / "x" if collected else study
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({**result("cycle", "cycle"), **changes}))
    before = sorted(tmp_path.rglob("*"))
    key, value = next(iter(changes.items()))
    with pytest.raises(SharingError, match=rf"result\.json: .*{re.escape(f'{key} is {value!r}; allowed: {allowed}')}"):
        write_report(study, [tmp_path / "runs"] if collected else [])
    assert sorted(tmp_path.rglob("*")) == before


def test_no_picture_is_written_through_a_link_to_outside(study, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (study / "bleu_by_parameters.png").symlink_to(tmp_path / "victim")
    with pytest.raises(SharingError, match=r"path 'bleu_by_parameters\.png': not inside"):
        write_report(study)
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("count", [1, 8, 9, 48])
def test_every_parameter_set_has_its_own_color(count):
    colors = set_colors(count)
    assert len(set(colors)) == count
    assert all(re.fullmatch("#[0-9A-Fa-f]{6}", color) for color in colors)


def test_text_on_a_cell_has_enough_contrast():
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in (*set_colors(8), *set_colors(24)):
        text = {"black": 0.0, "white": 1.0}[ink(color)]
        light, dark = sorted((luminance(color), text), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color
