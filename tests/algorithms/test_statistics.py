"""Statistics: against SciPy, and against intervals whose coverage is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from algorithms.statistics import bootstrap, iqm, mean, paired, student

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 5), (10, 7)])
def test_interquartile_mean_is_the_trimmed_mean(shape):
    values = RNG.exponential(size=shape)
    assert iqm(values) == pytest.approx(stats.trim_mean(values.ravel(), 0.25))
    np.testing.assert_allclose(iqm(values, axis=0), stats.trim_mean(values, 0.25, axis=0))


@pytest.mark.parametrize("statistic", [iqm, mean])
def test_interval_of_one_seed_is_scipys_percentile_bootstrap(statistic):
    values = RNG.exponential(size=(1, 60))
    got = bootstrap(values, statistic, seed=1, draws=20_000)
    theirs = stats.bootstrap(
        (values[0],), statistic, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert got.value == pytest.approx(statistic(values))
    assert got.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert got.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_a_lucky_seed_is_lucky_on_all_days():
    """Values that differ by seed alone: the days must not make the interval narrower than that over seeds."""
    luck = RNG.normal(size=(8, 1))
    many = bootstrap(np.repeat(luck, 500, axis=1), mean, seed=0, draws=4000)
    alone = bootstrap(luck, mean, seed=0, draws=4000)
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_strata_are_resampled_apart():
    """A stratum whose values are all the same adds nothing to the interval, however far off it lies."""
    noise = RNG.normal(size=(1, 40))
    joint = bootstrap([noise, np.full((1, 40), 100.0)], mean, seed=0)
    own = bootstrap(noise, mean, seed=0)
    assert joint.value == pytest.approx(50 + own.value / 2)
    assert joint.high - joint.low == pytest.approx((own.high - own.low) / 2, rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = RNG.normal(size=(3, 9))
    assert bootstrap(values, seed=5) == bootstrap(values, seed=5)
    assert bootstrap(values, seed=5) != bootstrap(values, seed=6)


def test_students_interval_is_scipys():
    values = RNG.normal(size=12)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert student(values) == pytest.approx((values.mean(), theirs.low, theirs.high))
    assert np.isnan(student(values[:1]).low)


def test_differences_on_the_same_days_do_not_see_the_days():
    day = 100 * RNG.normal(size=(1, 200))
    ours = day + 1 + 0.1 * RNG.normal(size=(4, 200))
    gain = paired(ours, day, seed=0)
    assert gain.low < 1 < gain.high and gain.high - gain.low < 0.2
    swapped = paired(day, ours, seed=0)
    assert swapped.value == pytest.approx(-gain.value) and swapped.low < -1 < swapped.high


def test_the_others_seeds_widen_the_interval_of_differences():
    lucky = np.repeat(RNG.normal(size=(6, 1)), 50, axis=1)
    gain, own = paired(np.zeros((1, 50)), lucky, seed=0), bootstrap(lucky, mean, seed=0)
    assert gain.high - gain.low == pytest.approx(own.high - own.low, rel=0.15)


def test_senseless_values_are_refused():
    with pytest.raises(ValueError, match="finite"):
        bootstrap(np.array([[1.0, np.nan]]), seed=0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap(np.ones(3), seed=0)
    with pytest.raises(ValueError, match="the same days"):
        paired(np.ones((2, 3)), np.ones((1, 4)), seed=0)
    with pytest.raises(ValueError, match="independent"):
        student(np.ones((2, 2)))
