"""The audit: below the claim for what is right, near to it, and above it for what is broken on purpose."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, norm

from federated import audit as module
from federated.audit import audit, bounds, gaussian_epsilon
from federated.clipping import clipped
from federated.hardened import Hardened, hardened_sum
from federated.noise import gaussian
from federated.round import Cohort, Federation, a_round, begin, fed_avg
from federated.work import Clients, Work

CLIENTS, SIZE, CLIP, Z, DELTA = 10, 30, 0.5, 1.0, 1e-5
CLAIM = gaussian_epsilon(1 / Z, DELTA)
ATTACK = {"size": 10 * CLIP, "delta": DELTA, "trials": 4000}


def updates():
    draw = np.random.default_rng(0)
    return {"w": jnp.asarray(draw.normal(size=(CLIENTS, SIZE))), "b": jnp.asarray(draw.normal(size=(CLIENTS, 4)))}


def mechanism(key, updates, *, noise_clip=CLIP, divided=1.0, clips=True):
    """The central Gaussian mechanism, with the means to break it."""
    each = jax.vmap(lambda u: clipped(u, CLIP)[0])(updates) if clips else updates
    total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)
    return jax.tree.map(lambda leaf: leaf / CLIENTS, gaussian(key, total, Z * noise_clip / divided))


def unclipped_canary(key, updates):
    """The client of the audit is not clipped; the others are."""
    each = jax.vmap(lambda u: clipped(u, CLIP)[0])(updates)
    each = jax.tree.map(lambda c, u: c.at[3].set(u[3]), each, updates)
    return jax.tree.map(lambda leaf: leaf / CLIENTS, gaussian(key, jax.tree.map(lambda e: e.sum(0), each), Z * CLIP))


def test_the_claim_of_one_gaussian():
    """Of the closed form: at mu = 1 and epsilon = 0, delta is 2 Phi(1/2) - 1; and dp-accounting's PLD."""
    assert gaussian_epsilon(1.0, 2 * norm.cdf(0.5) - 1) == 0
    assert gaussian_epsilon(1.0, 2 * norm.cdf(0.5) - 1 - 1e-6) < 1e-4
    for mu, delta in ((0.2, 1e-5), (1.0, 1e-5), (4.0, 1e-6)):
        epsilon = gaussian_epsilon(mu, delta)
        x = np.linspace(-40, 60, 2_000_001)  # the hockey stick by a sum
        stick = np.maximum(norm.pdf(x, mu) - np.exp(epsilon) * norm.pdf(x), 0).sum() * (x[1] - x[0])
        np.testing.assert_allclose(stick, delta, rtol=1e-3)
    dp = pytest.importorskip("dp_accounting")
    exact = dp.pld.PLDAccountant().compose(dp.GaussianDpEvent(Z)).get_epsilon(DELTA)
    np.testing.assert_allclose(CLAIM, exact, rtol=1e-3)
    assert gaussian_epsilon(1.0, 0.0) == math.inf and gaussian_epsilon(0.0, 0.0) == 0


def test_the_bound_is_below_the_claim_and_near_to_it():
    """mu to a fifth, and so the Gaussian's epsilon; without an assumption about a third of it is found."""
    found = audit(mechanism, updates(), 3, jax.random.key(0), **ATTACK)
    assert 0.8 / Z < found.mu <= 1 / Z
    assert 0.75 * CLAIM < found.gaussian_epsilon <= CLAIM
    assert 0.3 * CLAIM < found.epsilon <= CLAIM
    assert "4000 without a canary, confidence 0.95" in found.text() and "delta 1e-05" in found.text()


BROKEN = {
    "noise divided before the sum": functools.partial(mechanism, divided=CLIENTS),
    "noise of another clip": functools.partial(mechanism, noise_clip=CLIP / 5),
    "nobody clipped": functools.partial(mechanism, clips=False),
    "one client not clipped": unclipped_canary,
    "no noise": functools.partial(mechanism, noise_clip=1e-9),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_mechanisms_are_caught(name):
    """Above the claim even without the assumption that the noise is Gaussian."""
    found = audit(BROKEN[name], updates(), 3, jax.random.key(1), **ATTACK)
    assert found.epsilon > CLAIM and found.mu > 1 / Z and found.gaussian_epsilon > CLAIM


def test_a_mildly_broken_one_is_caught_by_mu():
    """Half again too little noise: epsilon 6.9 instead of 4.4."""
    found = audit(functools.partial(mechanism, divided=1.5), updates(), 3, jax.random.key(2), **ATTACK)
    assert 1 / Z < found.mu <= 1.5 / Z and found.gaussian_epsilon > CLAIM


@pytest.mark.parametrize("multiplier,caught", [(Z, False), (Z / 5, True)])
def test_the_federations_round(multiplier, caught):
    """The real round: within the claim as configured, and caught with less noise than is claimed."""
    move = Work(lambda key, state, data, rows: (state + data[0], {}), lambda s: s, lambda _, shared: shared)
    federation = Federation((move,), fed_avg(), bound=CLIP, noise_multiplier=multiplier, expected=float(CLIENTS))

    def release(key, updates):
        flat = jnp.concatenate([updates["w"], updates["b"]], axis=1)
        clients = Clients(flat[:, None], jnp.ones(CLIENTS, jnp.int32), jnp.zeros((CLIENTS, SIZE + 4)))
        cohort = Cohort(clients, jnp.arange(CLIENTS), jnp.ones(CLIENTS))
        server = begin(federation, jnp.zeros(SIZE + 4))
        shared = a_round(jax.random.key(0), key, server, (cohort,), federation)[0].shared
        return {"w": shared[:SIZE], "b": shared[SIZE:]}

    found = audit(release, updates(), 3, jax.random.key(4), **ATTACK)
    assert 0.8 / multiplier < found.mu <= 1 / multiplier
    assert (found.epsilon > CLAIM) == (found.mu > 1 / Z) == caught


def test_the_hardened_mechanism_on_the_host():
    bytes_ = np.random.default_rng(0).bytes
    config = Hardened(CLIP, Z)
    release = lambda key, updates: hardened_sum(updates, np.ones(CLIENTS), config, source=bytes_)  # noqa: E731
    found = audit(release, updates(), 3, jax.random.key(5), size=10 * CLIP, delta=DELTA, trials=600, host=True)
    assert 0.55 / Z < found.mu <= 1 / Z and found.epsilon <= CLAIM


def test_the_confidence_holds():
    """Over 300 audits of two normal distributions a distance of 1 apart, at most one in five is wrong, as said."""
    draw = np.random.default_rng(0)
    found = [bounds(draw.normal(size=400), draw.normal(1.0, size=400), delta=DELTA, confidence=0.8) for _ in range(300)]
    wrong = sum(f.mu > 1.0 or f.epsilon > gaussian_epsilon(1.0, DELTA) for f in found)
    assert wrong <= 0.2 * 300
    assert np.mean([f.mu for f in found]) > 0.5
    same = [bounds(draw.normal(size=400), draw.normal(size=400), delta=DELTA, confidence=0.8) for _ in range(300)]
    assert sum(f.mu > 0 or f.epsilon > 0 for f in same) <= 0.2 * 300


def test_rates_are_clopper_and_pearsons():
    yes, no = np.array([0.1, 0.5, 0.9, 1.5, 2.0]), np.array([-1.0, -0.5, 0.0, 0.2, 0.7])
    low, high = module._rates(yes, no, np.array([-2.0, 0.3, 5.0]), 0.01)
    for k, (hits, wrong) in enumerate(((5, 5), (4, 1), (0, 0))):
        assert low[k] == pytest.approx(binomtest(hits, 5, alternative="greater").proportion_ci(0.99, "exact").low)
        assert high[k] == pytest.approx(binomtest(wrong, 5, alternative="less").proportion_ci(0.99, "exact").high)


def test_an_absence_that_shows_is_found_too():
    """Without the canary a mark appears that nothing else makes: no threshold on its presence is as telling."""
    draw = np.random.default_rng(1)
    without = np.where(draw.uniform(size=4000) < 0.2, -100.0, draw.normal(size=4000))
    assert bounds(without, draw.normal(size=4000), delta=DELTA, confidence=0.95).epsilon > 3.5


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least 40 trials"):
        audit(mechanism, updates(), 0, jax.random.key(0), size=1.0, delta=0.1, trials=10)
    with pytest.raises(ValueError, match="does the mechanism diverge"):
        bounds(np.array([np.nan] * 50), np.zeros(50), delta=0.1, confidence=0.9)
