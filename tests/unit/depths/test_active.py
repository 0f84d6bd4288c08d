"""The layers that run at a depth."""

from __future__ import annotations

import pytest

from fairseq_sharing.depths.active import active_layers, possible_depths
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import make_layer_map, relabel


@pytest.mark.parametrize(
    ("layer_map", "depth", "active"),
    [
        ((0, 0, 0, 0, 0, 0), 1, (0,)),
        ((0, 0, 0, 0, 0, 0), 4, (0, 1, 2, 3)),
        ((0, 1, 2, 0, 1, 2), 3, (0, 1, 2)),
        ((0, 1, 2, 0, 1, 2), 5, (0, 1, 2, 3, 4)),
        ((0, 0, 1, 1, 2, 2), 3, (0, 2, 4)),
        ((0, 0, 1, 1, 2, 2), 4, (0, 1, 2, 4)),
        ((0, 0, 0, 1, 1, 2, 2), 3, (0, 3, 5)),
        ((0, 1, 2, 2, 1, 0), 3, (0, 1, 2)),
        ((0, 1, 2, 0, 1, 2, 2, 1, 0), 6, (0, 1, 2, 6, 7, 8)),
        ((0, 1, 1, 1, 2), 3, (0, 1, 4)),
        ((0, 1, 1, 1, 2), 4, (0, 1, 2, 4)),
        ((0, 1, 2, 3, 4, 5), 1, (0,)),
        ((0, 1, 2, 3, 4, 5), 4, (0, 1, 2, 3)),
        ((0, 1, 1, 0, 2, 2), 5, (0, 1, 2, 3, 4)),
    ],
)
def test_active_layers_of_each_map(layer_map, depth, active):
    assert active_layers(layer_map, depth, "--depth") == active


@pytest.mark.parametrize(
    ("layer_map", "depth", "message"),
    [
        (
            (0, 1, 2, 0, 1, 2),
            2,
            "--depth 2: leaves out parameter set 2 of the layer map 0,1,2,0,1,2; allowed: 3, 4, 5, 6",
        ),
        (
            (0, 0, 1, 1, 2, 2),
            2,
            "--depth 2: leaves out parameter set 2 of the layer map 0,0,1,1,2,2; allowed: 3, 4, 5, 6",
        ),
        ((0, 1, 2, 2, 1, 0), 4, "--depth 4: the layer map 0,1,2,2,1,0 has no such depth; allowed: 3, 6"),
        ((0, 1, 1, 1, 2), 2, "--depth 2: leaves out parameter set 2 of the layer map 0,1,1,1,2; allowed: 3, 4, 5"),
        ((0, 1, 1, 0, 2, 2), 4, "--depth 4: leaves out parameter set 2 of the layer map 0,1,1,0,2,2; allowed: 5, 6"),
        ((0, 0, 0), 4, "--depth 4: the layer map 0,0,0 has no such depth; allowed: 1, 2, 3"),
        ((0, 0, 0), 0, "--depth 0: the layer map 0,0,0 has no such depth; allowed: 1, 2, 3"),
    ],
)
def test_refusal_names_the_missing_set_and_the_depths_of_the_map(layer_map, depth, message):
    with pytest.raises(SharingError) as refused:
        active_layers(layer_map, depth, "--depth")
    assert str(refused.value) == message


@pytest.mark.parametrize("strategy", ["universal", "sequence", "cycle", "cycle_rev", "sandwich"])
def test_every_depth_uses_every_set_and_runs_the_map_of_its_strategy(strategy):
    for layers in range(4, 14):
        for sets in [1] if strategy == "universal" else [3] if strategy == "sandwich" else range(1, layers):
            whole = make_layer_map(strategy, layers, sets)
            for depth in possible_depths(whole):
                active = active_layers(whole, depth, "--depth")
                assert len(active) == depth
                assert list(active) == sorted(set(active))
                labels = [whole[layer] for layer in active]
                assert set(labels) == set(whole)
                assert relabel(labels) == make_layer_map(strategy, depth, sets)
                assert all(whole.index(label) in active for label in set(whole)), "each owner is active"
