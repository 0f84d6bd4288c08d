"""Known answers of the comparison over training runs, of its power and of its calibration."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from fairseq_sharing.commands import main
from fairseq_sharing.reporting.calibration import is_calibrated, simulate, split_rates
from fairseq_sharing.reporting.power import half_width, least_difference, power, required_seeds
from fairseq_sharing.reporting.statistics import (
    Pooled,
    against_baseline,
    hedges_g,
    holm,
    of_paired_seeds,
    of_pairs,
    outliers,
    permutation_p,
    permutation_reaches,
)

A, B, C = (36.0, 36.4, 36.8), (36.9, 37.3, 37.0), (36.2, 36.5, 36.1)
SAMPLES = {"a": A, "b": B, "c": C}


def test_welch_has_its_known_answer():
    family = of_pairs(SAMPLES, [("b", "a")], separate=True)
    (one,) = family.comparisons
    assert one.difference == pytest.approx(0.6667, abs=1e-4)
    assert one.difference / one.error == pytest.approx(2.56074, abs=1e-5)
    assert one.freedom == pytest.approx(3.00930, abs=1e-5)
    assert one.p == family.adjusted[0] == pytest.approx(0.082904, abs=1e-6)
    assert one.interval == pytest.approx((-0.16041, 1.49374), abs=1e-5)
    scipy_s = stats.ttest_ind(B, A, equal_var=False).confidence_interval()
    assert one.own_interval == pytest.approx((scipy_s.low, scipy_s.high))
    assert family.pooled is None


def test_permutation_and_effect_size_have_their_known_answers():
    assert permutation_p(B, A) == pytest.approx(0.1)
    assert hedges_g(B, A) == pytest.approx(0.8 * 2.09083, abs=1e-5)
    assert hedges_g(A, A) == 0.0
    assert hedges_g((1.0, 1.0), (1.0, 1.0)) is None
    assert [permutation_reaches(n, n) for n in (2, 3, 4, 5)] == [False, False, True, True]
    assert permutation_p((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)) == pytest.approx(2 / math.comb(8, 4))


def test_dunnett_has_its_known_answer():
    family = against_baseline(SAMPLES, "a")
    assert [one.pair for one in family.comparisons] == [("b", "a"), ("c", "a")]
    assert family.adjusted == pytest.approx((0.0509, 0.7999), abs=0.002)
    assert family.comparisons[0].interval == pytest.approx((-0.004, 1.337), abs=0.001)
    assert family.comparisons[1].interval == pytest.approx((-0.804, 0.537), abs=0.001)
    assert family.adjusted == against_baseline(SAMPLES, "a").adjusted, "the generator is fixed"
    single = family.comparisons[0]
    half = stats.t.ppf(0.975, 6) * single.error
    assert single.own_interval == pytest.approx((single.difference - half, single.difference + half))


def test_holm_has_its_known_answer():
    assert holm((0.01, 0.04, 0.03, 0.005)) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm((0.005, 0.03, 0.04, 0.01)) == pytest.approx([0.02, 0.06, 0.06, 0.03])
    assert holm([0.3]) == [0.3]
    assert holm((0.02, 0.02)) == pytest.approx([0.04, 0.04])
    assert holm((0.6, 0.7)) == [1.0, 1.0]
    assert holm([]) == []


def test_spread_is_pooled_over_rows_by_degrees_of_freedom():
    three, five = np.array([-1.0, 0.0, 1.0]), np.array([-1.0, -1.0, 0.0, 1.0, 1.0])
    rows = {
        "three": (40 + 0.3 * three / three.std(ddof=1)).tolist(),
        "five": (30 + 0.5 * five / five.std(ddof=1)).tolist(),
        "single": [99.0],
    }
    pooled = Pooled.of(rows)
    assert (pooled.deviation, pooled.freedom) == (pytest.approx(0.4435, abs=1e-4), 6)
    assert Pooled.of({"single": [99.0]}) is None


def test_equal_runs_have_no_spread_and_are_not_tested():
    equal = {"a": (30.1, 30.1, 30.1), "b": (30.1, 30.1, 30.1)}
    assert Pooled.of(equal).deviation == 0.0
    assert Pooled.of({"a": (0.1 + 0.2, 0.3)}).deviation == 0.0, "a rounding error is no spread"
    assert against_baseline(equal, "a") is None
    assert of_pairs(equal, [("b", "a")]) is None
    assert of_pairs(equal, [("b", "a")], separate=True) is None
    assert of_paired_seeds({"a": {1: 30.0, 2: 31.0}, "b": {1: 30.5, 2: 31.5}}, [("b", "a")]) is None


def test_single_seeds_are_left_out():
    assert against_baseline({"a": (30.0,), "b": (31.0, 32.0), "c": (31.0, 33.0)}, "a") is None
    family = against_baseline({**SAMPLES, "single": (50.0,)}, "a")
    assert [one.pair[0] for one in family.comparisons] == ["b", "c"]
    assert family.pooled == Pooled.of(SAMPLES)


def test_swapping_two_rows_changes_signs_only():
    for separate in (False, True):
        forth, back = (of_pairs(SAMPLES, [pair], separate) for pair in (("b", "a"), ("a", "b")))
        assert forth.adjusted == pytest.approx(back.adjusted)
        one, other = forth.comparisons[0], back.comparisons[0]
        assert one.difference == pytest.approx(-other.difference)
        assert one.interval == pytest.approx([-end for end in reversed(other.interval)])
    assert permutation_p(A, B) == permutation_p(B, A)


def test_chosen_pairs_use_the_spread_of_all_rows_and_bonferroni_s_intervals():
    family = of_pairs(SAMPLES, [("b", "a"), ("c", "b")])
    assert (family.pooled.freedom, family.method) == (6, "Holm")
    one, other = family.comparisons
    assert one.critical == pytest.approx(stats.t.ppf(1 - 0.025 / 2, 6))
    assert family.adjusted == pytest.approx(holm([one.p, other.p]))
    assert other.difference == pytest.approx(fmean(C) - fmean(B))


def test_paired_seeds_are_compared_by_the_differences_of_common_seeds():
    runs = {"a": {1: 36.0, 2: 36.4, 3: 36.8, 9: 1.0}, "b": {3: 37.2, 1: 36.6, 2: 36.8}}
    (one,) = of_paired_seeds(runs, [("b", "a")]).comparisons
    expected = stats.ttest_rel((36.6, 36.8, 37.2), (36.0, 36.4, 36.8))
    assert (one.p, one.freedom) == (pytest.approx(expected.pvalue), 2)
    interval = expected.confidence_interval()
    assert one.interval == pytest.approx((interval.low, interval.high))


def test_the_part_of_the_sentences_widens_the_interval():
    one = against_baseline(SAMPLES, "a").comparisons[0]
    assert one.widened(0.0) == pytest.approx(one.own_interval)
    half = stats.t.ppf(0.975, 6) * math.hypot(one.error, 0.3)
    assert one.widened(0.3) == pytest.approx((one.difference - half, one.difference + half))


def test_outliers_are_described():
    calm = {f"row {index}": (30.0, 30.1, 30.2) for index in range(20)}
    assert outliers(calm) == []
    found = outliers({**calm, "diverged": (30.0, 30.1, 30.2, 12.0)})
    assert found == [
        "the standard deviation of diverged, 9.05, exceeds three times the pooled one",
        "runs of diverged differ from its mean by more than three pooled standard deviations: 12.00",
    ]


def test_power_has_its_known_answers():
    assert [power(0.4, 0.5, seeds) for seeds in (5, 12)] == pytest.approx([0.413, 0.833], abs=5e-4)
    assert required_seeds(0.4, 0.5) == 12
    assert least_difference(0.4, 3) == pytest.approx(1.228, abs=5e-4)
    assert power(0.4, least_difference(0.4, 7), 7) == pytest.approx(0.8)
    assert half_width(0.4, 3) == pytest.approx(0.907, abs=5e-4)
    assert power(0.4, 0.0, 5) == pytest.approx(0.05)
    assert required_seeds(0.01, 5.0) == 2
    assert required_seeds(1e9, 1e-9) is None


def test_adjusted_p_values_are_never_below_the_others():
    """Far in the tail, the error of scipy's integral is larger than the p-value."""
    samples = {"a": (36.0, 36.2), "b": (20.0, 20.4), "c": (19.8, 20.3), "d": (36.1, 36.5)}
    family = against_baseline(samples, "a")
    raw = [comparison.p for comparison in family.comparisons]
    assert min(raw) < 1e-4
    assert all(adjusted >= p for adjusted, p in zip(family.adjusted, raw, strict=True))


def test_power_command_answers_in_both_directions(capsys):
    assert main(["power", "--sd", "0.4", "--difference", "0.5", "--seeds", "5", "12"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == (
        "Seeds per row to detect a difference of 0.5 at a standard deviation of 0.4 with 80% power: 12"
    )
    lines = [line.split() for line in told.splitlines()]
    assert ["5", "0.58", "41%", "0.81"] in lines
    assert ["12", "0.34", "83%", "0.48"] in lines
    for words, message in (
        (["--sd", "0"], "argument --sd: must be a number above 0"),
        (["--sd", "0.4", "--seeds", "1"], "argument --seeds: must be a whole number from 2"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["power", *words])
        assert message in capsys.readouterr().err


def test_the_report_is_calibrated_and_the_test_of_single_seeds_is_not():
    rates = simulate([5, 5, 5], 0.4)
    assert is_calibrated(rates.report)
    assert is_calibrated(1 - rates.coverage)
    assert rates.single_seed == pytest.approx(0.30, abs=0.03)
    assert not is_calibrated(rates.single_seed)
    assert rates.welch < 0.065


@pytest.mark.parametrize(("noise", "rate"), [(0.05, 0.80), (0.4, 0.16)])
def test_single_seeds_are_told_apart_more_often_with_larger_test_sets(noise, rate):
    assert simulate([2, 2], 0.4, noise, draws=600).single_seed == pytest.approx(rate, abs=0.05)


def test_runs_of_one_row_are_split():
    generator = np.random.default_rng(1)
    pooled, welch = split_rates(tuple(generator.normal(30, 0.4, 8).tolist()))
    assert 0 <= welch <= pooled < 0.12
    assert split_rates((30.0, 30.1) * 5) == pytest.approx((0.0, 0.0), abs=0.05)


def test_sacrebleu_s_paired_bootstrap_rejects_too_often():
    """Its p-value at a difference of 1.96 standard errors is 0.024 instead of 0.05, so reports do not use it."""
    from sacrebleu.significance import _compute_p_value

    quantiles = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    for difference, expected in ((1.96, 0.0239), (1.0, 0.1225)):
        resampled = np.abs(quantiles + difference)
        assert _compute_p_value(resampled - resampled.mean(), difference) == pytest.approx(expected, abs=2e-4)
