"""The depths of training steps."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from fairseq_sharing.depths.options import read_depths, trained_settings
from fairseq_sharing.depths.sampling import poisson_lognormal, poisson_lognormal_pmf
from fairseq_sharing.depths.settings import DepthRequest, setting_name
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing, cycle, sequence

BOTH = {stack: StackSharing(tuple(cycle(12, 4))) for stack in ("encoder", "decoder")}
DECODER = {"decoder": StackSharing(tuple(cycle(12, 4)))}


def read(sharing=BOTH, **options):
    return read_depths(Namespace(**options), sharing)


def test_both_stacks_run_at_the_same_depth():
    depths = read(depths="4,8,12")
    assert [dict(setting) for setting in depths.settings] == [{"encoder": n, "decoder": n} for n in (4, 8, 12)]
    assert depths.probabilities == (0.25, 0.25, 0.5)


def test_depths_of_one_stack_are_independent_of_the_other():
    depths = read(depths="4,12", encoder_depths="8,12", depth_full_share=0.4)
    assert [tuple(setting.values()) for setting in depths.settings] == [(8, 4), (8, 12), (12, 4), (12, 12)]
    assert depths.probabilities == pytest.approx((0.2, 0.2, 0.2, 0.4))
    assert [tuple(s.values()) for s in read(decoder_depths="4,12").settings] == [(12, 4), (12, 12)]


@pytest.mark.parametrize("options", [{}, {"depths": "12"}, {"encoder_depths": "12"}, {"depths": 12}])
def test_full_depth_alone_is_a_model_without_the_feature(options):
    assert read(**options) is None
    assert trained_settings(Namespace(**options), BOTH) == ({"encoder": 12, "decoder": 12},)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": "4,8"}, "--depths 4,8: does not include all 12 layers of the encoder; allowed: a list with 12"),
        ({"depths": "4,x"}, "--depths 4,x: allowed: numbers of layers in ascending order, separated by commas"),
        ({"depths": "4,4,12"}, "--depths 4,4,12: allowed: numbers of layers in ascending order"),
        ({"depths": "12,4"}, "--depths 12,4: allowed: numbers of layers in ascending order"),
        ({"depths": "3,12"}, "--depths 3: leaves out parameter set 3 of the layer map"),
        ({"depths": "4,12", "depth_full_share": 1.0}, "--depth-full-share 1.0: allowed: more than 0 and less than 1"),
        (
            {"depths": "4,12", "depth_sampling": "1,2,3"},
            "--depth-sampling 1,2,3: allowed: uniform, poisson_lognormal, or 2",
        ),
        ({"depths": "4,12", "depth_sampling": "zipf"}, "--depth-sampling zipf: allowed: uniform"),
        (
            {"depths": "4,12", "depth_sampling": "1,2", "depth_full_share": 0.5},
            "--depth-full-share 0.5: --depth-sampling 1,2 gives the share of every depth; omit it",
        ),
        ({"depth_loss": "aligned"}, "--depth-loss aligned: requires --depths"),
        ({"depth_full_share": 0.2}, "--depth-full-share 0.2: requires --depths"),
        (
            {"depths": "4,12", "depth_loss": "aligned"},
            "--depth-loss aligned: trains depths of the decoder, whose encoder runs all layers; allowed: --encoder",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(SharingError) as refused:
        read(**options)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_aligned_loss_needs_depths_that_begin_the_full_stack():
    sharing = {"decoder": StackSharing(tuple(sequence(6, 3)))}
    with pytest.raises(SharingError, match="--depth-loss aligned: depth 3 of the decoder is not a beginning"):
        read(sharing, depths="3,6", depth_loss="aligned")
    assert read(DECODER, depths="4,12", depth_loss="aligned").aligned
    with pytest.raises(SharingError, match="--encoder-depths 3: the model has no encoder"):
        read(DECODER, encoder_depths="3")


@pytest.mark.parametrize(
    "options", [{}, {"depth_full_share": 0.2}, {"depth_sampling": "poisson_lognormal"}, {"depth_sampling": "1,0,2"}]
)
def test_empirical_distribution(options):
    depths = read(depths="4,8,12", **options)
    drawn = Counter(depths.draw(update, micro)["decoder"] for update in range(2500) for micro in range(4))
    observed = [drawn[setting["decoder"]] for setting in depths.settings]
    expected = [10_000 * p for p in depths.probabilities]
    assert all(count == 0 for count, p in zip(observed, expected, strict=True) if p == 0)
    pairs = [(count, p) for count, p in zip(observed, expected, strict=True) if p]
    assert chisquare(*zip(*pairs, strict=True)).pvalue > 0.001


def test_draw_depends_on_seed_update_and_micro_batch_only():
    one, same, other = (read(depths="4,8,12", seed=seed) for seed in (1, 1, 0))
    drawn = [[d.draw(u, m)["encoder"] for u in range(50) for m in range(3)] for d in (one, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][::3] != drawn[0][1::3], "micro-batches differ"
    assert drawn[0][:12] == [12, 12, 4, 8, 12, 12, 8, 12, 12, 4, 4, 8], "a resumed run repeats these depths"


@pytest.mark.parametrize("rate", [1.0, 5.0, 32.0])
def test_poisson_lognormal_has_the_mean_of_huginn(rate):
    probabilities = poisson_lognormal_pmf(rate, 600)
    counts = np.arange(1, 601)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert (counts * probabilities).sum() == pytest.approx(rate + 1, rel=1e-4)
    generator = np.random.default_rng(1)
    rates = np.exp(generator.normal(np.log(rate) - 0.5**2 / 2, 0.5, 200_000))
    sampled = generator.poisson(rates) + 1
    for count in (1, int(rate) + 1, int(2 * rate) + 1):
        assert probabilities[count - 1] == pytest.approx((sampled == count).mean(), abs=0.004)


def test_poisson_lognormal_uses_the_nearest_listed_depth():
    probabilities = poisson_lognormal([4, 8, 12])
    exact = poisson_lognormal_pmf(7.0, 11)
    assert probabilities == pytest.approx([exact[:6].sum(), exact[6:10].sum(), 1 - exact[:10].sum()])


def test_request():
    settings = read(decoder_depths="4,12").settings
    assert DepthRequest(decoder=4).resolve(settings) == {"encoder": 12, "decoder": 4}
    assert DepthRequest().resolve(settings) == {"encoder": 12, "decoder": 12}
    with pytest.raises(SharingError) as refused:
        DepthRequest(4).resolve(settings)
    assert str(refused.value) == (
        "depth 4: the model was not trained at it; allowed: encoder 12 and decoder 4, 12 (or --force-depth)"
    )
    assert DepthRequest(4, force=True).resolve(settings) == {"encoder": 4, "decoder": 4}
    with pytest.raises(SharingError, match="--encoder-depth 4: the model has no encoder; allowed: --depth"):
        DepthRequest(encoder=4).resolve([{"decoder": 12}])


def test_names():
    assert setting_name({"encoder": 6, "decoder": 6}) == "d6"
    assert setting_name({"encoder": 12, "decoder": 3}) == "e12d3"
    assert setting_name({"decoder": 3}) == "d3"
