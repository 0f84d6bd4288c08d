import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation import generation
from fairseq_sharing.evaluation.generation import generate, parse_generated, read_generated
from fairseq_sharing.evaluation.hypotheses import task_words

# As fairseq-generate writes it: in the order of its batches, log lines between.
OUTPUT = """\
2026-01-01 00:00:00 | INFO | fairseq_cli.generate | loading model(s) from checkpoint.pt
S-2	Three people .
T-2	Drei Personen .
H-2	-0.5512	Drei Per@@ sonen .
D-2	-0.5512	Drei Per@@ sonen .
P-2	-0.4 -0.5 -0.6 -0.7
S-0	H-1 is a robot .
H-0	-0.25	H-1 ist ein Ro@@ boter .
D-0	-0.25	H-1 ist ein Ro@@ boter .
H-1	-1.5	
D-1	-1.5	
2026-01-01 00:00:01 | INFO | fairseq_cli.generate | Translated 3 sentences (12 tokens) in 0.1s
Generate test with beam=5: BLEU4 = 10.00, 50/20/10/5 (BP=1.000, ratio=1.0, syslen=12, reflen=12)
"""


def _parse(text, segments):
    return parse_generated(text.split("\n"), segments, "test.generate.txt")


def test_hypotheses_are_sorted_by_id():
    assert _parse(OUTPUT, 3) == ["H-1 ist ein Ro@@ boter .", "", "Drei Per@@ sonen ."]


def test_ten_sorts_after_nine():
    lines = [f"H-{sentence}\t-1.0\t{sentence}" for sentence in (10, 2, 9, 0, 1, 3, 8, 7, 6, 5, 4)]
    assert parse_generated(lines, 11, "test") == [str(sentence) for sentence in range(11)]


def test_tabs_and_line_separators_belong_to_the_hypothesis(tmp_path):
    file = tmp_path / "generate.txt"
    file.write_text("H-0\t-1.0\ta\tb\u2028c\x85d\n", encoding="utf-8", newline="\n")
    assert read_generated(file, 1) == ["a\tb\u2028c\x85d"]


@pytest.mark.parametrize(
    ("text", "segments", "message"),
    [
        (OUTPUT, 4, "test.generate.txt: 1 of 4 sentences are not translated: 3"),
        ("", 9, "test.generate.txt: 9 of 9 sentences are not translated: 0, 1, 2, 3, 4, ..."),
        (OUTPUT + "H-2\t-0.1\tNochmals", 3, "test.generate.txt: sentence 2 is translated twice"),
        (OUTPUT, 2, "test.generate.txt: ids beyond the 2 sentences of the test set (0 to 1): 2"),
        ("H-0\tno score", 1, "test.generate.txt: 'H-0\\tno score' is not a hypothesis"),
        ("H-x\t-1.0\ttext", 1, "test.generate.txt: 'H-x\\t-1.0\\ttext' is not a hypothesis"),
    ],
)
def test_incomplete_output_is_refused_in_one_line(text, segments, message):
    with pytest.raises(SharingError) as caught:
        _parse(text, segments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.fixture
def program(monkeypatch):
    """Replace fairseq-generate by a Python program."""

    def replace(code):
        popen = generation.subprocess.Popen
        started = SimpleNamespace(
            Popen=lambda command, **options: popen([sys.executable, "-c", code], **options),
            PIPE=generation.subprocess.PIPE,
        )
        monkeypatch.setattr(generation, "subprocess", started)

    return replace


def test_output_is_renamed_once_it_is_complete(program, tmp_path):
    output = tmp_path / "folder" / "test.generate.txt"
    program(f"import os; print('H-0\\t-1\\tja'); assert not os.path.exists({str(output)!r})")
    assert generate([], output, 1, "test", Console(file=io.StringIO())) == ["ja"]
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    assert output.read_text() == "H-0\t-1\tja\n"


@pytest.mark.parametrize(
    ("code", "left", "message"),
    [
        ("import sys; print('H-0\\t-1\\tja'); sys.exit('no memory')", ["test.generate.txt.errors"], "no memory"),
        (
            "print('H-1\\t-1\\tja')",
            ["test.generate.txt.errors"],
            "^fairseq-generate on test: 1 of 1 sentences are not translated: 0",
        ),
    ],
)
def test_incomplete_output_does_not_replace_the_last_one(program, tmp_path, code, left, message):
    output = tmp_path / "test.generate.txt"
    output.write_text("of the last time")
    program(code)
    with pytest.raises(SharingError, match=message):
        generate([], output, 1, "test", Console(file=io.StringIO()))
    assert output.read_text() == "of the last time"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["test.generate.txt", *left]


@pytest.mark.parametrize("sizes", ["1101, 7", "np.int32(1101), np.int32(7)"])
def test_a_sentence_that_is_too_long_is_named_with_the_limits(sizes):
    line = (
        f"Exception: Size of sample #3 is invalid (=({sizes})) since max_positions=(1024, 512), skip this example with"
    )
    assert generation._too_long(f"{line} --skip-invalid-size-inputs-valid-test") == (
        "line 4 has 1,101 source and 7 target subwords with the end of sentence; allowed: at most 1,024 and 512, the "
        "run's train.max_source_positions and train.max_target_positions"
    )
    assert generation._too_long("RuntimeError: Size of tensor a") is None


def test_the_task_of_the_run_is_that_of_the_evaluation():
    assert task_words({}) == ["--task", "translation"]
    train = {"task": "translation_sharing", "max_source_positions": 2000, "max_target_positions": 99, "lr": 0.1}
    expected = ["--task", "translation_sharing", "--max-source-positions", "2000", "--max-target-positions", "99"]
    assert task_words(train) == expected
    assert task_words({"truncate_source": True}) == ["--task", "translation", "--truncate-source"]
    assert task_words({"truncate_source": False}) == ["--task", "translation"]
