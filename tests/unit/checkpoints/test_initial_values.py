"""Which trained layers fill each parameter set."""

from __future__ import annotations

import pytest

from fairseq_sharing.checkpoints.initial_values import source_layers
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import make_layer_map


@pytest.mark.parametrize(
    ("layers", "sets", "expected"),
    [
        (6, 1, [0]),
        (6, 2, [0, 5]),
        (6, 3, [0, 3, 5]),  # 2.5 is rounded up
        (6, 4, [0, 2, 3, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (7, 3, [0, 3, 6]),
        (8, 4, [0, 2, 5, 7]),
        (12, 5, [0, 3, 6, 8, 11]),
        (18, 9, [0, 2, 4, 6, 9, 11, 13, 15, 17]),
        (1, 1, [0]),
        (2, 3, [0, 1, 1]),
    ],
)
def test_stepwise_takes_layers_at_equal_distances(layers, sets, expected):
    depth = max(layers, sets)
    for strategy in ("cycle", "sequence", "cycle_rev"):
        layer_map = make_layer_map(strategy, depth, sets)
        assert source_layers("stepwise", layer_map, layers) == [[layer] for layer in expected], strategy


@pytest.mark.parametrize(
    ("layer_map", "first", "average"),
    [
        ((0, 1, 2, 0, 1, 2), [[0], [1], [2]], [[0, 3], [1, 4], [2, 5]]),
        ((0, 0, 1, 1, 2, 2), [[0], [2], [4]], [[0, 1], [2, 3], [4, 5]]),
        ((0, 1, 2, 2, 1, 0), [[0], [1], [2]], [[0, 5], [1, 4], [2, 3]]),
        ((0, 1, 1, 1, 1, 2), [[0], [1], [5]], [[0], [1, 2, 3, 4], [5]]),
        ((0, 1, 2, 3, 4, 5), [[i] for i in range(6)], [[i] for i in range(6)]),
    ],
)
def test_first_and_average_take_the_layers_that_use_the_set(layer_map, first, average):
    assert source_layers("first", layer_map, 6) == first
    assert source_layers("average", layer_map, 6) == average


def test_a_deeper_stack_is_filled_if_every_set_has_its_layers():
    deeper = make_layer_map("cycle", 8, 4)
    assert source_layers("first", deeper, 4) == [[0], [1], [2], [3]]
    assert source_layers("stepwise", deeper, 6) == [[0], [2], [3], [5]]
    for init, layers in (("average", 6), ("first", 3)):
        with pytest.raises(SharingError) as caught:
            source_layers(init, deeper, layers)
        assert str(caught.value) == (
            f"--init {init} needs layer {7 if init == 'average' else 3} for a map of 8 layers, but the checkpoint has "
            f"the layers 0 to {layers - 1}; allowed: --init stepwise, or at most {layers} layers"
        )
