"""MACs by sentence length against the count for one length."""

from __future__ import annotations

import pytest
from moeut_models import BANKS, build_moeut
from tied_models import checkpoint_of
from tiny_models import VOCABULARY, arguments, build

from fairseq_sharing.depths.settings import DepthRequest
from fairseq_sharing.description.depth_costs import costs_of_depths
from fairseq_sharing.description.sentence_macs import measure_costs
from fairseq_sharing.errors import SharingError

CYCLE = {"sharing": "cycle", "unique_layers": 2, "encoder_layers": 4, "decoder_layers": 4}


def checkpoint(**options):
    args = arguments(**{**CYCLE, **options})
    return checkpoint_of(build(**{**CYCLE, **options}), args), args


def test_costs_equal_those_of_describe_at_every_length():
    stored, args = checkpoint(depths="2,3,4")
    settings = [{"encoder": n, "decoder": n} for n in (2, 3, 4)]
    costs = measure_costs(stored, settings, VOCABULARY)
    for length in (1, 9, 40):
        for index, cost in enumerate(costs_of_depths(args, VOCABULARY, length)):
            assert cost.depth == settings[index]
            assert costs.at_one_depth(index, [length]) == pytest.approx(cost.macs, rel=1e-9)


def test_encoder_of_the_classifier_is_the_shallowest():
    stored, _ = checkpoint(encoder_depths="2,4", decoder_depths="2,4")
    costs = measure_costs(stored, [{"encoder": e, "decoder": d} for e in (2, 4) for d in (2, 4)], VOCABULARY)
    embed, ffn = 16, 32
    layer = 4 * embed * embed + 2 * embed * ffn  # per token, besides attention weights
    assert costs.encoder == pytest.approx((2 * layer, 2 * 2 * embed))
    two, four = costs.settings[0], costs.settings[2]
    assert (four[0] - two[0], four[1] - two[1]) == pytest.approx(costs.encoder), "two more encoder layers"


def test_moeut_counts_its_encoder():
    options = {**BANKS, **CYCLE, "depths": "2,4"}
    stored = checkpoint_of(build_moeut(**options), arguments("pre", "transformer_moeut", **options))
    costs = measure_costs(stored, [{"encoder": n, "decoder": n} for n in (2, 4)], VOCABULARY)
    assert 0 < costs.encoder[0] < costs.settings[0][0] < costs.settings[1][0]


def test_a_depth_that_has_no_model_is_refused():
    stored, _ = checkpoint(sharing="sequence", depths="2,4", depth_signal="sinusoidal")
    with pytest.raises(SharingError, match="--depth-signal sinusoidal: depth 2 of the encoder skips layers"):
        measure_costs(stored, [{"encoder": 2, "decoder": 2}], VOCABULARY)
    with pytest.raises(SharingError, match=r"^--depth auto: .*; allowed here: a number of layers$"):
        DepthRequest(per_sentence=True).resolve([{"encoder": 2, "decoder": 2}])
