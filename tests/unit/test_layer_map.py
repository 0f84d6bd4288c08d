"""Layer maps: the published tables, the formulas, and the error messages."""

from __future__ import annotations

from math import ceil

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import (
    SHARING_CHOICES,
    STRATEGIES,
    StackSharing,
    format_map,
    make_layer_map,
    num_unique,
    owners,
    parse_scope,
    relabel,
    resolve_stack,
)

SIZES = [(m, n) for n in range(1, 25) for m in range(1, n + 1)]
COUNT_UP, COUNT_DOWN = tuple(range(6)), tuple(range(5, -1, -1))


@pytest.mark.parametrize(
    ("strategy", "m", "n", "expected"),
    [
        # Takase & Kiyono 2023, Figure 1 and the rows of their Table 2.
        ("sequence", 3, 6, (0, 0, 1, 1, 2, 2)),
        ("cycle", 3, 6, (0, 1, 2, 0, 1, 2)),
        ("cycle_rev", 3, 6, (0, 1, 2, 2, 1, 0)),
        ("sequence", 6, 18, tuple(label for label in range(6) for _ in range(3))),
        ("cycle", 6, 18, COUNT_UP * 3),
        ("cycle_rev", 6, 18, COUNT_UP * 2 + COUNT_DOWN),
        ("cycle_rev", 6, 12, COUNT_UP + COUNT_DOWN),
        # M does not divide N.
        ("sequence", 3, 7, (0, 0, 0, 1, 1, 2, 2)),
        ("cycle", 3, 7, (0, 1, 2, 0, 1, 2, 0)),
        ("cycle_rev", 3, 7, (0, 1, 2, 0, 1, 2, 2)),
        ("sequence", 3, 5, (0, 0, 1, 1, 2)),
        ("cycle", 3, 5, (0, 1, 2, 0, 1)),
        ("cycle_rev", 3, 5, (0, 1, 2, 2, 1)),
        # M = N and M = 1.
        ("sequence", 4, 4, (0, 1, 2, 3)),
        ("cycle", 4, 4, (0, 1, 2, 3)),
        ("cycle_rev", 4, 4, (0, 1, 2, 3)),
        ("cycle_rev", 1, 4, (0, 0, 0, 0)),
        ("none", None, 4, (0, 1, 2, 3)),
        ("universal", None, 4, (0, 0, 0, 0)),
        ("sandwich", None, 3, (0, 1, 2)),
        ("sandwich", None, 6, (0, 1, 1, 1, 1, 2)),
    ],
)
def test_map_is_that_of_the_paper(strategy, m, n, expected):
    assert make_layer_map(strategy, n, m) == expected


def paper_formula(strategy: str, i: int, m: int, n: int) -> int:
    """The formulas as printed in the paper, with layers i and sets counted from 1."""
    if strategy == "sequence":
        return ((i - 1) * m) // n + 1
    if strategy == "cycle" or n == m or i <= m * (ceil(n / m) - 1):
        return (i - 1) % m + 1
    return m - (i - 1) % m


@pytest.mark.parametrize("strategy", ["sequence", "cycle", "cycle_rev"])
def test_map_follows_the_printed_formula_for_every_m_and_n(strategy):
    for m, n in SIZES:
        expected = tuple(paper_formula(strategy, i, m, n) - 1 for i in range(1, n + 1))
        assert make_layer_map(strategy, n, m) == expected, (m, n)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_map_has_n_labels_and_uses_m_sets_in_the_order_of_first_use(strategy):
    fixed = STRATEGIES[strategy].fixed_unique_layers
    for m, n in SIZES:
        if (fixed and fixed(n) != m) or (strategy == "sandwich" and n < 3):
            continue
        layer_map = make_layer_map(strategy, n, m)
        assert len(layer_map) == n
        assert list(dict.fromkeys(layer_map)) == list(range(m)), (m, n, layer_map)
        assert num_unique(layer_map) == m
        assert [layer_map[owner] for owner in owners(layer_map)] == list(range(m))


def test_sequence_spreads_layers_evenly_over_sets():
    for m, n in SIZES:
        layer_map = make_layer_map("sequence", n, m)
        uses = [layer_map.count(label) for label in range(m)]
        assert max(uses) - min(uses) <= 1, (m, n)
        assert list(layer_map) == sorted(layer_map)


@pytest.mark.parametrize(
    ("custom", "expected"),
    [
        ("0,0,2,0,2", (0, 0, 1, 0, 1)),
        (" 4, 4,2 ,4,2", (0, 0, 1, 0, 1)),
        ("x,y,y,x,z", (0, 1, 1, 0, 2)),
        ([7, 7, 7, 7, 7], (0, 0, 0, 0, 0)),
        (("b", 1, "b", None, 1), (0, 1, 0, 2, 1)),
    ],
)
def test_custom_map_is_relabeled_by_first_use(custom, expected):
    assert make_layer_map("custom", 5, custom=custom) == expected
    assert make_layer_map("custom", 5, num_unique(expected), custom) == expected


def test_relabeling_twice_changes_nothing():
    once = relabel("cabbage")
    assert once == (0, 1, 2, 2, 1, 3, 4)
    assert relabel(once) == once


def test_owner_of_a_set_is_the_first_layer_that_uses_it():
    assert owners((0, 0, 1, 0, 2, 1)) == [0, 2, 4]
    assert owners(()) == []
    assert num_unique(()) == 0


def test_map_is_written_as_the_flag_takes_it():
    layer_map = make_layer_map("cycle_rev", 7, 3)
    assert format_map(layer_map) == "0,1,2,0,1,2,2"
    assert make_layer_map("custom", 7, custom=format_map(layer_map)) == layer_map


def test_stack_without_layers_has_an_empty_map():
    for strategy in ("none", "universal", "cycle"):
        assert make_layer_map(strategy, 0, None if strategy != "cycle" else 2) == ()


CHOICES = "none, universal, sequence, cycle, cycle_rev, sandwich, custom"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("cycles", 6, 3), f"--sharing must be one of {CHOICES}, got cycles"),
        (("cycle", 6), "--unique-layers: missing; --sharing cycle needs a value from 1 to the number of layers (6)"),
        (("cycle", 6, 7), "--unique-layers must be between 1 and the number of layers (6), got 7"),
        (("sequence", 6, 0), "--unique-layers must be between 1 and the number of layers (6), got 0"),
        (("cycle_rev", 6, -2), "--unique-layers must be between 1 and the number of layers (6), got -2"),
        (
            ("cycle_rev", 12, 13, None, "encoder"),
            "--encoder-unique-layers must be between 1 and --encoder-layers (12), got 13",
        ),
        (
            ("cycle", 4, None, None, "decoder"),
            "--decoder-unique-layers: missing; --decoder-sharing cycle needs a value from 1 to --decoder-layers (4)",
        ),
        (("universal", 6, 2), "--unique-layers must be 1 (or omitted) with --sharing universal and 6 layers, got 2"),
        (("none", 6, 3), "--unique-layers must be 6 (or omitted) with --sharing none and 6 layers, got 3"),
        (("sandwich", 6, 4), "--unique-layers must be 3 (or omitted) with --sharing sandwich and 6 layers, got 4"),
        (("sandwich", 2), "--sharing sandwich: the number of layers must be at least 3, got 2"),
        (
            ("sandwich", 2, None, None, "decoder"),
            "--decoder-sharing sandwich: --decoder-layers must be at least 3, got 2",
        ),
        (("custom", 4), "--layer-map: missing; --sharing custom needs 4 labels, for example 0,1,1,0"),
        (
            ("custom", 4, None, "0,1,0"),
            "--layer-map must have 4 labels (the number of layers), got 3: 0,1,0",
        ),
        (
            ("custom", 4, None, "0,1,,0", "encoder"),
            "--encoder-layer-map must have 4 labels (--encoder-layers), got 4: 0,1,,0",
        ),
        (("custom", 2, None, [0, 1, 0]), "--layer-map must have 2 labels (the number of layers), got 3: 0,1,0"),
        (
            ("custom", 4, 3, "0,1,1,0"),
            "--unique-layers must be 2 (or omitted) with --layer-map 0,1,1,0, got 3",
        ),
        (("cycle", 4, 2, "0,1,1,0"), "--layer-map 0,1,1,0: needs --sharing custom, got cycle"),
    ],
)
def test_bad_option_is_refused_by_name_with_value_and_what_is_allowed(options, message):
    strategy, n, *rest = options
    m, custom, stack = [*rest, *(None, None, "")[len(rest) :]]
    with pytest.raises(SharingError) as caught:
        make_layer_map(strategy, n, m, custom, stack)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("layer", ("layer",)),
        ("ffn", ("ffn",)),
        (" layer_norm,self_attn", ("self_attn", "layer_norm")),
        (["ffn", "encoder_attn"], ("encoder_attn", "ffn")),
    ],
)
def test_scope_is_read_in_a_fixed_order(scope, expected):
    assert parse_scope(scope) == expected


@pytest.mark.parametrize("scope", ["layers", "ffn,embedding", "layer,ffn", "", "ffn,"])
def test_unknown_scope_is_refused(scope):
    with pytest.raises(SharingError) as caught:
        parse_scope(scope)
    got = scope or "nothing"
    assert str(caught.value) == (
        f"--sharing-scope must be layer, or some of self_attn,encoder_attn,ffn,layer_norm, got {got}"
    )


CYCLE = {"sharing": "cycle", "unique_layers": 2}


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({}, (0, 1, 2, 3), (0, 1, 2, 3)),
        (CYCLE, (0, 1, 0, 1), (0, 1, 0, 1)),
        # One option for one stack; the others apply to both.
        ({**CYCLE, "decoder_unique_layers": 3}, (0, 1, 0, 1), (0, 1, 2, 0)),
        ({**CYCLE, "encoder_sharing": "sequence"}, (0, 0, 1, 1), (0, 1, 0, 1)),
        ({**CYCLE, "encoder_sharing": "sequence", "encoder_unique_layers": 1}, (0, 0, 0, 0), (0, 1, 0, 1)),
        # A strategy for one stack ignores the number and the map for both stacks.
        ({**CYCLE, "decoder_sharing": "none"}, (0, 1, 0, 1), (0, 1, 2, 3)),
        ({**CYCLE, "decoder_sharing": "universal"}, (0, 1, 0, 1), (0, 0, 0, 0)),
        ({**CYCLE, "decoder_sharing": "sandwich"}, (0, 1, 0, 1), (0, 1, 1, 2)),
        (
            {**CYCLE, "encoder_sharing": "custom", "encoder_layer_map": "5,5,5,1"},
            (0, 0, 0, 1),
            (0, 1, 0, 1),
        ),
        (
            {"sharing": "custom", "layer_map": "0,1,1,0", "decoder_sharing": "cycle", "decoder_unique_layers": 3},
            (0, 1, 1, 0),
            (0, 1, 2, 0),
        ),
        ({"sharing": "custom", "layer_map": "0,1,1,0", "decoder_layer_map": "0,0,0,1"}, (0, 1, 1, 0), (0, 0, 0, 1)),
        ({"decoder_sharing": "universal"}, (0, 1, 2, 3), (0, 0, 0, 0)),
    ],
)
def test_options_of_one_stack_go_before_those_of_both(options, encoder, decoder):
    assert resolve_stack(options, "encoder", 4).layer_map == encoder
    assert resolve_stack(options, "decoder", 4).layer_map == decoder


def test_scope_of_one_stack_overrides_that_of_both():
    options = {**CYCLE, "sharing_scope": "ffn", "decoder_sharing_scope": "encoder_attn,self_attn"}
    assert resolve_stack(options, "encoder", 4).scope == ("ffn",)
    assert resolve_stack(options, "decoder", 4).scope == ("self_attn", "encoder_attn")
    assert resolve_stack(CYCLE, "decoder", 4).scope == ("layer",)


@pytest.mark.parametrize(
    ("options", "stack", "message"),
    [
        (
            {**CYCLE, "unique_layers": 5},
            "encoder",
            "--unique-layers must be between 1 and the number of layers (4), got 5",
        ),
        (
            {**CYCLE, "decoder_unique_layers": 5},
            "decoder",
            "--decoder-unique-layers must be between 1 and --decoder-layers (4), got 5",
        ),
        (
            {"sharing": "universal", "encoder_unique_layers": 2},
            "encoder",
            "--encoder-unique-layers must be 1 (or omitted) with --encoder-sharing universal and 4 layers, got 2",
        ),
        (
            {**CYCLE, "sharing_scope": "encoder_attn"},
            "encoder",
            "--encoder-sharing-scope encoder_attn: ties no part of the encoder; "
            "allowed: layer, or some of self_attn,ffn,layer_norm",
        ),
        (
            {"unique_layers": 2},
            "encoder",
            "--unique-layers must be 4 (or omitted) with --sharing none and 4 layers, got 2",
        ),
        ({"layer_map": "0,0,0,0"}, "decoder", "--layer-map 0,0,0,0: needs --sharing custom, got none"),
    ],
)
def test_bad_options_of_a_stack_are_refused(options, stack, message):
    with pytest.raises(SharingError) as caught:
        resolve_stack(options, stack, 4)
    assert str(caught.value) == message


def test_map_of_n_sets_shares_nothing():
    assert not StackSharing((0, 1, 2)).shares
    assert not StackSharing(()).shares
    assert StackSharing((0, 1, 0)).shares


def test_choices_are_those_of_the_documentation():
    assert ", ".join(SHARING_CHOICES) == CHOICES
