import pytest
from evaluation_results import BLEU_SIGNATURE, result, write

from fairseq_sharing.errors import SharingError
from fairseq_sharing.reporting.results import add_result, read_rows, scored_sets, signatures


def test_rows_come_vanilla_first_then_by_strategy_and_size(tmp_path):
    deep = {"layer_map": {"encoder": [0, 1, 2], "decoder": [0, 1, 2]}}
    sizes = {"encoder": 3, "decoder": 3}
    write(
        tmp_path,
        result("a_rev", "cycle_rev"),
        result("b_cycle", "cycle"),
        result("c_sequence", "sequence"),
        result("d_universal", "universal"),
        result("e_deep", "none", **deep, layers=sizes, unique_layers=sizes),
        result("f_vanilla", "none"),
    )
    rows = read_rows(tmp_path)
    assert [row.run for row in rows] == [
        "f_vanilla",
        "e_deep",
        "d_universal",
        "c_sequence",
        "b_cycle",
        "a_rev",
    ]
    assert [row.label for row in rows] == ["Vanilla", "Vanilla", "Universal", "Sequence", "Cycle", "Cycle (rev)"]
    assert rows[5].title == "Cycle (rev), M=2, N=4"


def test_seeds_of_a_run_are_one_row_with_mean_and_sample_deviation(tmp_path):
    write(
        tmp_path,
        result("vanilla"),
        *(
            result("cycle", "cycle", seed, bleu, updates=3840 + 10 * seed)
            for seed, bleu in ((1, 30.0), (2, 31.0), (3, 32.0))
        ),
    )
    vanilla, cycle = read_rows(tmp_path)
    bleu = cycle.score("test_2016_flickr", "bleu")
    assert (bleu.mean, bleu.deviation) == (31.0, pytest.approx(1.0))
    assert bleu.format() == "31.00 ± 1.00"
    assert vanilla.score("test_2016_flickr", "bleu").format() == "30.00"
    assert vanilla.score("another", "bleu") is None
    assert cycle.speed.mean == 12_200.0
    assert cycle.updates == "3,850 to 3,870"
    assert vanilla.updates == "3,840"
    assert vanilla.score("test_2016_flickr", "ter") is None, "results of other versions lack a metric"


def test_different_strategies_per_stack_are_both_named(tmp_path):
    content = result("mixed", "cycle", layers={"encoder": 4, "decoder": 2})
    write(tmp_path, {**content, "sharing": {"encoder": "cycle", "decoder": "none"}})
    (row,) = read_rows(tmp_path)
    assert row.title == "Cycle / Vanilla, M=2, N=4+2"


def test_signatures_and_test_sets_are_collected_once(tmp_path):
    write(tmp_path, result("vanilla"), result("cycle", "cycle"))
    rows = read_rows(tmp_path)
    assert scored_sets(rows) == ["test_2016_flickr"]
    assert signatures(rows)["bleu"] == [BLEU_SIGNATURE]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], r"contains no result \(\*\.json\); create results with"),
        (
            [result(), result("toy", dataset="toy")],
            r"several datasets \(multi30k, toy\); allowed: one dataset per folder",
        ),
        (
            [result(), result(seed=2, layer_map={"encoder": [0, 0], "decoder": [0, 1]})],
            r"vanilla-seed2\.json and .*vanilla-seed1\.json: both are named vanilla but differ in layer_map",
        ),
        ([result(scores={})], "contains no scores"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(tmp_path, results, message):
    with pytest.raises(SharingError, match=message):
        read_rows(write(tmp_path / "study", *results))


def test_files_that_are_not_results_are_refused(tmp_path):
    with pytest.raises(SharingError, match="no such folder"):
        read_rows(tmp_path / "absent")
    write(tmp_path, result())
    (tmp_path / "notes.json").write_text('{"run": "x"}')
    with pytest.raises(SharingError, match=r"notes\.json: not a result of evaluate; missing: dataset, sharing"):
        read_rows(tmp_path)
    (tmp_path / "notes.json").write_text("[1, 2]")
    with pytest.raises(SharingError, match=r"notes\.json: not a result of evaluate: \[1, 2\]; allowed: a mapping"):
        read_rows(tmp_path)
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(SharingError, match=r"notes\.json: not JSON"):
        read_rows(tmp_path)


def test_the_same_run_and_seed_twice_is_refused(tmp_path):
    write(tmp_path, result())
    (tmp_path / "copy.json").write_text((tmp_path / "vanilla-seed1.json").read_text())
    with pytest.raises(SharingError, match="both are run vanilla, seed 1; keep only one"):
        read_rows(tmp_path)


def _add(content, folder, tmp_path):
    (file,) = write(tmp_path / content["sharing"]["encoder"], content).glob("*.json")
    add_result(file, folder)


def test_a_result_does_not_replace_that_of_another_experiment(tmp_path):
    folder = tmp_path / "study"
    _add(result("vanilla"), folder, tmp_path)
    _add(result("vanilla", bleu=31.0), folder, tmp_path)
    (score,) = read_rows(folder)[0].results[0]["scores"].values()
    assert score["bleu"] == 31.0
    with pytest.raises(SharingError, match=r"vanilla-seed1\.json: the result of another experiment with this name"):
        _add(result("vanilla", "cycle"), folder, tmp_path)
    assert read_rows(folder)[0].strategy == "none"


def test_hypotheses_are_copied_with_a_result(tmp_path):
    content = result("vanilla")
    name = "hypotheses/test_2016_flickr.en-de.hyp.vanilla-seed1.de.gz"
    content["scores"]["test_2016_flickr"] |= {"hypotheses": name, "hypothesis_sha256": "0"}
    run, folder = tmp_path / "none", tmp_path / "study"
    with pytest.raises(SharingError) as caught:
        _add(content, folder, tmp_path)
    assert str(caught.value) == f"{run / name}: no such file; evaluate the run again"
    assert not list(folder.glob("*.json")), "no result without its hypotheses"
    (run / "hypotheses").mkdir()
    (run / name).write_bytes(b"compressed")
    _add(content, folder, tmp_path)
    assert (folder / name).read_bytes() == b"compressed"
    add_result(folder / "vanilla-seed1.json", folder)
    assert (folder / name).read_bytes() == b"compressed", "onto itself"
    content["scores"]["test_2016_flickr"]["hypotheses"] = "../outside.gz"
    with pytest.raises(SharingError, match=r"path '\.\./outside\.gz': not inside"):
        _add(content, folder, tmp_path)
