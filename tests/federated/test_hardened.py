"""The hardened tier: the sampler against its exact probabilities, and integers that never exceed their bound."""

import math

import numpy as np
import pytest
from scipy import stats

from federated import hardened
from federated.hardened import Hardened, discrete_gaussian, discrete_laplace, hardened_sum, on_grid


def fixed(seed):
    """Bytes of a seeded generator in place of the operating system's."""
    return np.random.default_rng(seed).bytes


def probabilities(weight, most):
    """Of -most to most, and of all beyond, for a weight that falls off fast."""
    places = np.arange(-60 * most, 60 * most + 1)
    weights = weight(places.astype(float))
    inside = np.abs(places) <= most
    p = weights[inside] / weights.sum()
    return np.append(p, 1 - p.sum())


def chance(sample, p, most):
    """The p-value of the chi-square test."""
    counts = np.array([np.sum(sample == k) for k in range(-most, most + 1)])
    counts = np.append(counts, len(sample) - counts.sum())
    enough = p * len(sample) >= 5
    seen, wanted = np.append(counts[enough], counts[~enough].sum()), np.append(p[enough], p[~enough].sum())
    seen, wanted = (seen, wanted) if wanted[-1] * len(sample) >= 5 else (seen[:-1], wanted[:-1])
    return stats.chisquare(seen, wanted / wanted.sum() * seen.sum()).pvalue


@pytest.mark.parametrize("variance", [1, 2, 7, 30, 400])
def test_the_sampler_is_the_discrete_gaussian(variance):
    most = math.ceil(4 * math.sqrt(variance))
    p = probabilities(lambda y: np.exp(-(y**2) / (2 * variance)), most)
    assert chance(discrete_gaussian(variance, 60_000, fixed(variance)), p, most) > 1e-3


def test_a_rounded_normal_number_is_not():
    """The negative control: the test above can tell."""
    p = probabilities(lambda y: np.exp(-(y**2) / 2), 4)
    sample = np.rint(np.random.default_rng(0).normal(size=60_000)).astype(int)
    assert chance(sample, p, 4) < 1e-9


@pytest.mark.parametrize("scale", [1, 2, 9])
def test_the_laplace_sampler(scale):
    p = probabilities(lambda y: np.exp(-np.abs(y) / scale), 5 * scale)
    assert chance(discrete_laplace(scale, 60_000, fixed(scale)), p, 5 * scale) > 1e-3


@pytest.mark.parametrize("variance", [10**6, 2**34, 2**60])
def test_wide_noise_is_nearly_normal(variance):
    """Beyond a variance of about 2^30 the probabilities' integers need more than 64 bits."""
    sample = discrete_gaussian(variance, 20_000, fixed(3))
    assert sample.dtype == np.int64
    assert stats.kstest(sample / math.sqrt(variance), "norm").pvalue > 1e-3


@pytest.mark.parametrize("bound", [1, 2, 3, 2**32 + 1, 2**63 - 1, 3 * 2**70])
def test_uniform_integers(bound):
    sample = hardened._below(bound, 6000, fixed(1))
    assert min(sample) >= 0 and max(sample) < bound
    thirds = np.bincount([int(n) * 3 // bound for n in sample], minlength=3)
    if bound >= 3:
        assert stats.chisquare(thirds).pvalue > 1e-3


@pytest.mark.parametrize("gamma", [(0, 5), (1, 7), (1, 1), (13, 5)])
def test_events_of_probability_exp(gamma):
    numerator, denominator = gamma
    happens = hardened._bernoulli_exp(np.full(20_000, numerator, object), denominator, fixed(2))
    p = math.exp(-numerator / denominator)
    assert abs(happens.mean() - p) <= 5 * math.sqrt(p * (1 - p) / 20_000)


def test_the_operating_system_is_asked_for_randomness():
    """No generator can repeat the noise: two releases differ under the same seeds. Only a given source repeats it."""
    config, updates, present = Hardened(1.0, 1.0), np.zeros((2, 50)), np.ones(2)
    draws = []
    for _ in range(2):
        np.random.seed(0)
        draws.append(hardened_sum(updates, present, config))
    assert (draws[0] != draws[1]).mean() > 0.9
    again = [hardened_sum(updates, present, config, source=fixed(0)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    with pytest.raises(ValueError, match="the source gave 3 bytes"):
        discrete_gaussian(4, 10, lambda count: b"abc")


@pytest.mark.parametrize("d", [1, 2, 3, 17, 400, 5000])
def test_no_update_exceeds_the_sensitivity(d):
    """Least room, exact arithmetic, and vectors that rounding moves most: halves, edges, huge, tiny, and not finite."""
    draw = np.random.default_rng(d)
    smallest = math.isqrt(d) + 1
    for sensitivity in (smallest, 7 * smallest, 2**14, 2**40):
        config = Hardened(3.0, 1.0, sensitivity)
        halves = (np.full(d, 0.5) + draw.integers(0, 3, d)) * config.step
        direction = draw.normal(size=d)
        direction /= np.linalg.norm(direction)
        edge = np.eye(d)[0] * 3.0
        even = np.full(d, 3.0 / math.sqrt(d))
        cases = [halves, halves * 1e3, 3.0 * direction, 2.9999999 * direction, edge, 1e300 * edge, even, 5e307 * edge]
        cases += [np.full(d, 1.7e308), np.full(d, 5e-324), -even * (1 + 1e-15), direction * draw.exponential(3.0)]
        for x in cases:
            k = on_grid({"a": x[: d // 2], "b": x[d // 2 :]}, config)
            assert k.dtype == np.int64 and sum(int(n) ** 2 for n in k) <= sensitivity**2
        for bad in (np.nan, np.inf):
            assert not on_grid(np.append(even[1:], bad), config).any()


def test_updates_within_the_clip_are_only_rounded():
    x = np.random.default_rng(0).normal(size=300)
    x *= 0.9 / np.linalg.norm(x)
    config = Hardened(1.0, 1.0)
    np.testing.assert_allclose(on_grid(x, config) * config.step, x, atol=config.step / 2 * (1 + 1e-9))
    clipped = on_grid(100 * x, config) * config.step
    np.testing.assert_allclose(clipped, x / 0.9, atol=config.step + 1e-3)
    assert 1 - 300**0.5 / 2 / 2**14 - 1e-3 < np.linalg.norm(clipped) <= 1


def test_a_grid_without_room_is_refused():
    with pytest.raises(ValueError, match="sensitivity 10 leaves no room for rounding 100 numbers: take more than 10"):
        on_grid(np.ones(100), Hardened(1.0, 1.0, 10))
    for numbers in ((0.0, 1.0), (1.0, 0.0), (1.0, float("nan")), (1.0, 1.0, 0), (1.0, 1.0, 2**41)):
        with pytest.raises(ValueError, match=r"take a"):
            Hardened(*numbers)
    with pytest.raises(ValueError, match="do not fit into 64 bits"):
        hardened_sum(np.zeros((1, 2)), np.ones(1), Hardened(1.0, 1e12, 2**40))


def test_the_sum_is_that_of_the_clients_present_in_any_order():
    draw = np.random.default_rng(1)
    updates = {"w": draw.normal(size=(40, 6, 5)).astype(np.float32), "b": draw.normal(size=(40, 7))}
    updates = {k: v * 0.1 for k, v in updates.items()}
    present = (draw.uniform(size=40) < 0.7).astype(float)
    config = Hardened(2.0, 1e-3)
    out = hardened_sum(updates, present, config, source=fixed(0))
    assert {k: v.shape for k, v in out.items()} == {"w": (6, 5), "b": (7,)}
    order = draw.permutation(40)
    turned = hardened_sum({k: v[order] for k, v in updates.items()}, present[order], config, source=fixed(0))
    for k, v in updates.items():
        np.testing.assert_array_equal(out[k], turned[k])
        np.testing.assert_allclose(out[k], np.tensordot(present, v, 1), atol=5 * 2e-3 + 40 * config.step / 2)


def test_the_noise_and_the_claim_are_those_of_the_research_tier():
    """sigma is z C within a step; rho is 1 / (2 z^2), never below what the integers give."""
    for z in (0.3, 1.0, 1.7, 5.0):
        config = Hardened(0.25, z)
        assert z * 0.25 <= math.sqrt(config.variance) * config.step < z * 0.25 * (1 + 1e-6)
        exact = config.sensitivity**2 / (2 * config.variance)
        assert exact <= config.rho <= 1 / (2 * z**2) * (1 + 1e-12)
    config = Hardened(0.25, 2.0)
    noise = hardened_sum(np.zeros((1, 20_000)), np.ones(1), config, source=fixed(5))
    assert abs(noise.var() / 0.5**2 - 1) < 5 * math.sqrt(2 / 20_000)


def test_epsilon_by_conversion_is_above_the_exact_one():
    """zCDP's epsilon of one release, above that of the Gaussian mechanism's exact curve (Balle and Wang, 2018)."""
    pytest.importorskip("dp_accounting")
    accounting = pytest.importorskip("federated.accounting")
    from scipy.optimize import brentq

    delta, mu = 1e-5, 1 / 2.0
    curve = lambda e: stats.norm.cdf(mu / 2 - e / mu) - math.exp(e) * stats.norm.cdf(-mu / 2 - e / mu)  # noqa: E731
    exact = brentq(lambda e: curve(e) - delta, 0, 20)
    epsilon = accounting.epsilon_of_zcdp(Hardened(1.0, 2.0).rho, delta)
    assert exact < epsilon < 1.25 * exact
