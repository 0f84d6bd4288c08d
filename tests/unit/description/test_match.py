"""Matching budgets: bisection, the counter as the oracle, refusals, and the printed result."""

from __future__ import annotations

import json
import random

import pytest

from fairseq_sharing import flags
from fairseq_sharing.commands import main
from fairseq_sharing.description import counts, step_time
from fairseq_sharing.description import match as matching
from fairseq_sharing.description.bisection import Grid, surround
from fairseq_sharing.description.match import Setting, match, refuse_residual
from fairseq_sharing.errors import SharingError

D, FFN, V = 8, 16, 50
VANILLA = {
    "arch": "transformer_sharing",
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_embed_dim": D for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_embed_dim": FFN for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
    "share_all_embeddings": True,
    "optimizer": "adam",
}
ONE_WIDE = {**VANILLA, "encoder_sharing": "universal", "encoder_sharing_scope": "ffn", "decoder_no_ffn": True}
PARAMETERS = Setting("parameters", V)


def parameters(train) -> int:
    return sum(counts.count_parameters(counts.build_without_storage(flags.parse(train), V)).values())


def test_one_wide_ffn_has_the_width_of_the_formula():
    """d_ff' (2d + 1) = (N + M)(2 d d_ff + d_ff + d) - d + 2 d M, rounded down: 1,144 / 17."""
    found = match(ONE_WIDE, VANILLA, ["encoder_ffn_embed_dim"], PARAMETERS)
    assert (4 * (2 * D * FFN + FFN + D) - D + 2 * D * 2, 2 * D + 1) == (1144, 17)
    assert found.value == 67
    assert list(found.candidates) == [67, 68]
    difference = parameters(VANILLA) - parameters({**ONE_WIDE, "encoder_ffn_embed_dim": 67})
    assert difference == 1144 - 67 * 17 < 2 * D + 1
    assert found.candidates[67].parameters == parameters(VANILLA) - difference
    assert found.candidates[67].embeddings == V * D
    assert found.candidates[67].residual == pytest.approx(-difference / parameters(VANILLA))
    assert found.overrides == "train.encoder_ffn_embed_dim=67"


@pytest.mark.parametrize(
    ("solve", "by", "start"),
    [("ffn_embed_dim", "parameters", 3), ("encoder_ffn_embed_dim", "macs", 90), ("decoder_ffn_embed_dim", "macs", 16)],
)
def test_the_result_does_not_depend_on_start_and_order(solve, by, start):
    """The same configuration with other values of the solved options and its keys in another order."""
    options = matching.FIELDS[solve]
    wanted = {**VANILLA, **dict.fromkeys(options, 40)}
    changed = list({**VANILLA, **dict.fromkeys(options, start)}.items())
    random.Random(start).shuffle(changed)
    found = match(dict(changed), wanted, [solve], Setting(by, V))
    assert (found.options, found.value) == (options, 40)
    assert found.candidates[40].residual == 0 < found.candidates[41].residual
    assert found.candidates[40] == found.reference


def test_neighbors_are_within_and_above_the_budget():
    deeper = {**VANILLA, "encoder_layers": 3}
    found = match(deeper, VANILLA, ["ffn_embed_dim"], PARAMETERS, multiple_of=2)
    below, above = found.candidates
    assert above == below + 2
    assert found.value == below
    assert found.candidates[below].residual < 0 < found.candidates[above].residual
    assert parameters({**deeper, "encoder_ffn_embed_dim": below, "decoder_ffn_embed_dim": below}) <= parameters(VANILLA)
    nearer = min(found.candidates, key=lambda value: abs(found.candidates[value].residual))
    assert match(deeper, VANILLA, ["ffn_embed_dim"], PARAMETERS, multiple_of=2, nearest=True).value == nearer


def test_a_width_is_a_multiple_of_the_heads():
    wide = {**VANILLA, "encoder_embed_dim": 24, "decoder_embed_dim": 24}
    found = match({**VANILLA, "encoder_attention_heads": 4}, wide, ["embed_dim"], PARAMETERS, multiple_of=6)
    assert (found.value, list(found.candidates)) == (24, [24, 36])


def test_depth_for_equal_macs_of_shared_layers():
    shared = {**VANILLA, "sharing": "cycle", "unique_layers": 1, "encoder_layers": 4, "decoder_layers": 4}
    found = match(shared, VANILLA, ["layers"], Setting("macs", V))
    assert (found.value, found.candidates[2].residual) == (2, 0)
    assert found.candidates[2].parameters < found.reference.parameters


def test_the_width_of_factorized_embeddings():
    wanted = {**VANILLA, "embedding_factor_dim": 5}
    found = match({**VANILLA, "embedding_factor_dim": 2}, wanted, ["embedding_factor_dim"], PARAMETERS)
    assert (found.value, found.candidates[5].embeddings) == (5, V * 5 + 5 * D)


def test_a_language_model_keeps_its_input_and_output_widths_equal():
    train = {
        "task": "language_modeling",
        "arch": "transformer_lm_sharing",
        **dict.fromkeys(("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"), D),
        "decoder_ffn_embed_dim": FFN,
        "decoder_attention_heads": 2,
        "decoder_layers": 2,
        "share_decoder_input_output_embed": True,
        "optimizer": "adam",
    }
    wanted = {**train, **dict.fromkeys(("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"), 12)}
    found = match(train, wanted, ["embed_dim"], PARAMETERS)
    assert (found.value, found.candidates[12].residual) == (12, 0)
    assert found.overrides == "train.decoder_embed_dim=12 train.decoder_input_dim=12 train.decoder_output_dim=12"


@pytest.mark.parametrize(
    ("train", "solve", "message"),
    [
        ({}, "width", "^--solve width: unknown; allowed: embed_dim, ffn_embed_dim, "),
        (
            {},
            "expert_dim",
            r"^--solve expert_dim: no option of --arch transformer_sharing; allowed: embed_dim, .*, embedding_f",
        ),
        ({}, "embedding_factor_dim", "no train.embedding_factor_dim; set it to any value"),
        ({"decoder_no_ffn": True}, "decoder_ffn_embed_dim", r"relative to the reference: 0\.\d+ at every value"),
        ({"sharing": "universal"}, "layers", r"parameters relative to the reference: 0\.\d+ at every value"),
        ({"encoder_layers": 20}, "decoder_layers", r"above 1 at every value; the least, 1, gives \d\.\d+$"),
        ({}, "encoder_embed_dim", "--share-all-embeddings requires --encoder-embed-dim to match"),
    ],
)
def test_what_cannot_be_reached_is_refused(train, solve, message):
    reference = {**VANILLA, "encoder_ffn_embed_dim": 24}
    with pytest.raises(SharingError, match=message):
        match({**VANILLA, **train}, reference, [solve], PARAMETERS)


def test_too_few_layers_for_the_map_are_named():
    shared = {**VANILLA, "sharing": "cycle", "unique_layers": 4, "encoder_layers": 5, "decoder_layers": 5}
    with pytest.raises(
        SharingError, match=r"above 1 at every value; the least, 4, gives .* 3 is refused: .*unique-layers"
    ):
        match(shared, VANILLA, ["layers"], Setting("macs", V))


def test_more_than_one_percent_is_refused():
    found = match({**VANILLA, "encoder_layers": 3}, VANILLA, ["decoder_layers"], PARAMETERS)
    assert found.value == 1
    with pytest.raises(SharingError, match=r"the difference in parameters is -\d+\.\d+% at 1 and \+.*% at 2; allow"):
        refuse_residual(found, PARAMETERS)


# Bisection


@pytest.mark.parametrize("start", [1, 7, 30, 64])
@pytest.mark.parametrize("target", [9, 10, 100, 641])
def test_the_target_is_between_the_neighbors(start, target):
    calls: list[int] = []

    def square(value: int) -> int:
        calls.append(value)
        return value * value

    below, above = surround(square, target, Grid(start, 1 << 20), "squares")
    assert below * below <= target < above * above
    assert above == below + 1
    assert len(calls) == len(set(calls)) <= 16, "each value is computed once"


def test_a_step_gives_multiples():
    assert surround(lambda value: value, 50, Grid(1, 1000, 8), "multiples") == {48: 48, 56: 56}


def test_plateaus_are_passed():
    assert list(surround(lambda value: value // 3, 5, Grid(1, 1000), "thirds")) == [17, 18]


def test_limits_are_named():
    with pytest.raises(SharingError, match=r"^tens: below 100 at every value; the largest, 40, gives 40$"):
        surround(float, 100, Grid(1, 4, 10), "tens")
    with pytest.raises(SharingError, match=r"^ones: above 0 at every value; the least, 1, gives 1$"):
        surround(float, 0, Grid(9, 100), "ones")


# Time


def test_time_is_measured_in_turn_with_the_reference(monkeypatch):
    """A machine that becomes slower: the times of the candidate and of the reference grow alike."""
    clock, order = [0.0], []

    class Timer:
        def __init__(self, args, *_others):
            self.width = args.encoder_ffn_embed_dim

        def seconds(self):
            clock[0] += 1
            order.append(self.width)
            return self.width * (1 + clock[0] / 1000)

    monkeypatch.setattr(matching, "StepTimer", Timer)
    wanted = {**VANILLA, "encoder_ffn_embed_dim": 400}
    found = match(VANILLA, wanted, ["encoder_ffn_embed_dim"], Setting("time", V, runs=3), nearest=True)
    assert abs(found.value - 400) <= 1
    assert order[1::2] == [400] * (len(order) // 2)
    assert order[:8:2] == [FFN] * 4, "one measurement that is not counted and three that are"


def test_the_median_ignores_the_first_measurement():
    ours, theirs = iter([99, 1, 5, 3]), iter([99, 2, 20, 4])
    assert step_time.alternate(lambda: next(ours), lambda: next(theirs), 3) == (3, 4)


@pytest.mark.parametrize("options", [{}, {"fast": True, "criterion": "fused_label_smoothed_cross_entropy"}])
def test_a_timed_step_is_an_update(options):
    timer = step_time.StepTimer(flags.parse({**VANILLA, **options}), V, 40, 5, "cpu")
    before = timer._model.encoder.layers[0].fc1.weight.detach().clone()
    assert timer.seconds() > 0
    assert not before.equal(timer._model.encoder.layers[0].fc1.weight)
    assert timer._sample["net_input"]["src_tokens"].shape == (8, 5)


# The command


@pytest.fixture
def files(tmp_path):
    paths = []
    for name, train in (("vanilla", VANILLA), ("wide", ONE_WIDE)):
        lines = [f"  {key}: {json.dumps(value)}" for key, value in train.items()]
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text("\n".join(["dataset: toy", "train:", *lines]))
    return [str(path) for path in paths]


def test_the_command_prints_both_neighbors_and_the_override(files, capsys):
    vanilla, wide = files
    words = ["match", wide, "train.dropout=0.2", "--to", vanilla, "train.dropout=0.1", "--vocabulary", str(V)]
    assert main([*words, "--solve", "encoder_ffn_embed_dim"]) == 0
    told = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in told.splitlines() if line.startswith("│")}
    total = parameters(VANILLA)
    assert [cell.strip() for cell in rows["unique parameters"]] == [f"{n:,}" for n in (total, total - 5, total + 12)]
    without = [total - V * D, total - V * D - 5, total - V * D + 12]
    assert [cell.strip() for cell in rows["without embeddings"]] == [f"{n:,}" for n in without]
    assert rows["difference in parameters"][1].strip() == f"{-500 / total:+.3f}%"
    assert "matched: unique parameters, including embeddings; the largest value within the budget" in told
    assert told.splitlines()[-1] == "train.encoder_ffn_embed_dim=67"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "size"], "--by size; allowed: parameters, macs, time"),
        (["--device", "tpu"], "--device tpu; allowed: "),
        (["--multiple-of", "1000"], "above 1 at every value; the least, 1000, gives "),
        (["--multiple-of", "2000000"], "--multiple-of 2000000; allowed: values at most 1048576 of "),
    ],
)
def test_wrong_options_are_refused_in_one_line(files, words, message, capsys):
    command = ["match", files[1], "--to", files[0], "--solve", "encoder_ffn_embed_dim", "--vocabulary", str(V)]
    assert main([*command, *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fairseq-sharing match: error: ")
    assert message in told
    assert told.count("\n") == 1
