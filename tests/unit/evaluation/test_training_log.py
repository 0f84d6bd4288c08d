import pytest

from fairseq_sharing.evaluation.training_log import summarize


def _inner(updates, speed):
    return "train_inner", {"epoch": 1, "loss": "9", "wps": str(speed), "num_updates": str(updates)}


def _valid(epoch, updates, loss, perplexity):
    record = {
        "epoch": epoch,
        "valid_loss": loss,
        "valid_ppl": perplexity,
        "valid_wps": "99999",
        "valid_num_updates": str(updates),
    }
    return "valid", record


def test_speed_is_the_median_after_the_first_entries():
    records = [_inner(20 * i, speed) for i, speed in enumerate((0, 10, 20, 30, 40, 1000, 500, 3000), 1)]
    assert summarize(records).tokens_per_second == 1000.0


def test_a_repeated_line_counts_once_and_a_resumed_one_replaces_it():
    records = [_inner(i, 100) for i in range(1, 6)] + [_inner(6, 100)] * 9 + [_inner(7, 900), _inner(8, 500)]
    assert summarize(records).tokens_per_second == 500.0
    assert summarize([*records, _inner(8, 700)]).tokens_per_second == 700.0


def test_a_short_log_uses_the_speed_of_whole_epochs():
    epochs = [
        ("train", {"train_wps": speed, "train_num_updates": str(updates)})
        for updates, speed in ((10, "1"), (20, "400"), (30, "600"))
    ]
    assert summarize([_inner(5, 100), *epochs]).tokens_per_second == 500.0
    assert summarize([_inner(5, 100)]).tokens_per_second is None


def test_curve_is_in_order_of_updates_and_keeps_the_last_of_each():
    log = summarize(
        [
            _valid(1, 10, "9.5", "700.5"),
            _valid(2, 20, "8.5", "350"),
            _valid(2, 20, "8.25", "310"),
            _valid(3, 30, "nan", "inf"),
        ]
    )
    assert log.valid == {
        "epoch": [1, 2, 3],
        "updates": [10, 20, 30],
        "loss": [9.5, 8.25, None],
        "perplexity": [700.5, 310.0, None],
    }


def test_empty_log_gives_an_empty_curve():
    log = summarize([])
    assert log.tokens_per_second is None
    assert log.valid["loss"] == pytest.approx([])


def test_use_of_experts_is_that_of_the_last_validation():
    first, last = _valid(1, 10, "5", "32"), _valid(2, 20, "4", "16")
    first[1]["valid_decoder_ffn_1_choices"] = [9, 9]
    last[1].update(
        {
            "valid_decoder_ffn_1_choices": [3, 0],
            "valid_decoder_ffn_1_evenness": "0",
            "valid_decoder_ffn_1_dead": "0.5",
        }
    )
    log = summarize([first, last])
    assert log.experts == {"decoder_ffn_1": {"choices": [3, 0], "evenness": 0.0, "dead": 0.5}}
    assert summarize([_valid(1, 10, "5", "32")]).experts == {}
