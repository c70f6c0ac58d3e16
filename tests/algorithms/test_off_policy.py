"""Estimates from logs on a small decision process whose truth is computed by dynamic programming here.

The data set holds every trajectory of three steps as often as it is likely, 1,024 episodes: what is an expectation over
trajectories is a mean over it, so that unbiased estimators and consistent ones give the truth itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms import fitted, off_policy
from algorithms.distributions import Distribution
from algorithms.off_policy import ESTIMATORS, Log, effective_size, estimate, log_of, log_probs, unweighable
from algorithms.spaces import Space, plain_space
from gridjax.env.datasets import Dataset, assemble
from gridjax.env.environment import Transitions

STEPS = 3
MU = np.array([[0.75, 0.25], [0.5, 0.5]])  # the behaviour's chances of the actions in both states
PI = np.array([[0.3, 0.7], [0.9, 0.1]])  # the evaluated policy's
REWARD = np.array([[1.0, -0.5], [2.0, 4.0]])
SPACE = plain_space(2, (2,))


def follow(state, action, w):
    """Next state and whether the task is over, for w of 0 and 1 with equal chance."""
    return (state + action * w) % 2 if state == 0 else int(w == 0), state == 1 and action == 1 and w == 1


def truth(policy, discount=1.0, steps=STEPS):
    """Mean value of both first states by dynamic programming."""
    v = np.zeros(2)
    for _ in range(steps):
        q = np.zeros((2, 2))
        for s, a, w in itertools.product(range(2), repeat=3):
            after, over = follow(s, a, w)
            q[s, a] += 0.5 * (REWARD[s, a] + discount * (not over) * v[after])
        v = np.sum(policy * q, axis=1)
    return v.mean()


def trajectory(state, draws):
    """Transitions and log probabilities where the behaviour's fourths and the states' halves are given."""
    rows = []
    for t, (u, w) in enumerate(draws):
        action = int(u >= 4 * MU[state, 0])
        after, over = follow(state, action, w)
        rows.append((np.eye(2)[state], [action], REWARD[state, action], [0.0], np.eye(2)[after], over,
                     t == STEPS - 1 and not over, np.log(MU[state, action])))  # fmt: skip
        if over:
            break
        state = after
    *columns, log_probability = (np.array(c) for c in zip(*rows, strict=True))
    names = ("observation", "action", "reward", "cost", "next_observation", "terminated", "truncated")
    floats = (np.asarray(c, np.float32) if c.dtype.kind == "f" else c for c in columns)
    of: Any = dict(zip(names, floats, strict=True))
    return Transitions(**of, info={}), log_probability


@pytest.fixture(scope="module")
def data() -> Dataset:
    choices = list(itertools.product(range(4), range(2)))
    parts = [trajectory(s, draws) for s in range(2) for draws in itertools.product(choices, repeat=STEPS)]
    none = np.zeros(len(parts), int)
    return assemble(parts, none, none, {"behaviours": ["dice"]})


@dataclass(frozen=True)
class Tabular:
    """A policy whose parameters are the logarithms of its chances (states, actions)."""

    space: Space

    def act(self, params, observation):
        logits = jnp.matmul(observation, params)[..., None, :]
        nothing = jnp.zeros((*observation.shape[:-1], 1), observation.dtype)
        return Distribution(nothing, nothing, logits, self.space)


DESIGN = Tabular(SPACE)
ACTORS = jnp.asarray(np.log(np.stack([PI, MU])), jnp.float32)  # two seeds: one is the behaviour itself


def test_log_probabilities_are_the_policys(data):
    got = log_probs(DESIGN, ACTORS, data, SPACE)
    state, action = data.transitions.observation[:, 1].astype(int), data.transitions.action[:, 0]
    np.testing.assert_allclose(got, np.log(np.stack([PI, MU]))[:, state, action], rtol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_all_trajectories_together_give_the_truth(data, name, discount):
    log_prob = log_probs(DESIGN, ACTORS, data, SPACE)[0]
    rng = np.random.default_rng(0)
    # Any critic leaves DR where it is, if only its V is the mean of its Q.
    table = rng.normal(size=(2, 2))
    state, action = data.transitions.observation[:, 1].astype(int), data.transitions.action[:, 0]
    log = log_of(data, log_prob, table[state, action], np.sum(PI * table, axis=1)[state])
    assert ESTIMATORS[name](log, discount) == pytest.approx(truth(PI, discount), abs=1e-5)
    assert abs(truth(PI, discount) - truth(MU, discount)) > 0.2


def test_a_sample_is_estimated_as_written_out(data):
    """Loops; DR by the recursion of Jiang and Li, V_t = v + rho_t (r + discount V_{t+1} - q)."""
    rng = np.random.default_rng(1)
    n, steps, discount = 6, 4, 0.9
    lengths = rng.integers(1, steps + 1, n)
    live = np.arange(steps)[None] < lengths[:, None]
    ratio, reward, q, v = (rng.normal(size=(n, steps)) * live for _ in range(4))
    log = Log(np.cumsum(ratio, axis=1), reward, q, v)
    pdis, dr = 0.0, 0.0
    for i in range(n):
        rho, after = 1.0, 0.0
        for t in range(lengths[i]):
            rho *= np.exp(ratio[i, t])
            pdis += discount**t * rho * reward[i, t] / n
        for t in reversed(range(lengths[i])):
            after = v[i, t] + np.exp(ratio[i, t]) * (reward[i, t] + discount * after - q[i, t])
        dr += after / n
    wis, wdr, least = 0.0, 0.0, np.inf
    before = np.full(n, 1 / n)
    for t in range(steps):
        rho = np.array([np.exp(np.sum(ratio[i, : t + 1])) for i in range(n)])
        w = rho / rho.sum()
        wis += discount**t * np.sum(w * reward[:, t])
        wdr += discount**t * np.sum(w * (reward[:, t] - q[:, t]) + before * v[:, t])
        before, least = w, min(least, rho.sum() ** 2 / np.sum(rho**2))
    for name, value in (("PDIS", pdis), ("DR", dr), ("WIS", wis), ("WDR", wdr)):
        assert ESTIMATORS[name](log, discount) == pytest.approx(value), name
    assert effective_size(log) == pytest.approx(least)


def test_products_too_small_for_numbers_still_weigh():
    ratio = np.full((3, 2000), -1.0) + np.array([[0.0], [0.0], [-1.0]])
    log = Log(np.cumsum(ratio, axis=1), np.ones((3, 2000)), *np.zeros((2, 3, 2000)))
    assert ESTIMATORS["WIS"](log, 1.0) == pytest.approx(2000.0)
    assert effective_size(log) == pytest.approx(2.0)


def test_intervals_hold_the_value_and_narrow_with_episodes(data):
    log = log_of(data, log_probs(DESIGN, ACTORS, data, SPACE)[0])
    whole = estimate("WIS", log, seed=0)
    few = estimate("WIS", Log(*(a[::16] for a in (log.log_rho, log.reward, log.q, log.v))), seed=0)
    assert whole.low < truth(PI) < whole.high
    assert few.high - few.low == pytest.approx(4 * (whole.high - whole.low), rel=0.5)
    assert whole == estimate("WIS", log, seed=0)


def test_unknown_probabilities_and_behaviours_without_chance_are_refused(data):
    log_prob = np.zeros(len(data.episode))
    unknown = data.log_probability.copy()
    unknown[0] = np.nan
    for given, message in ((unknown, "does not know the probabilities of the actions of dice"),
                           (np.zeros_like(unknown), "dice acted without chance")):  # fmt: skip
        changed = replace(data, log_probability=given)
        assert "noisy-" in unweighable(changed)
        with pytest.raises(ValueError, match=message):
            log_of(changed, log_prob)


@pytest.mark.parametrize(("samples", "finite", "discount"), [(4, True, 1.0), (0, False, 0.7)])
def test_fitted_critic_knows_the_truth(data, samples, finite, discount):
    config = fitted.Config(
        discount=discount, polyak=0.05, rate=1e-2, hidden=(16,), batch_size=128, updates=1000, samples=samples,
        finite=finite,
    )  # fmt: skip
    key = jax.random.key(0)
    critics, scale = fitted.fit(key, DESIGN, ACTORS, data, SPACE, config)
    q, v = fitted.values(key, critics, scale, DESIGN, ACTORS, data, SPACE, config)
    assert q.shape == v.shape == (2, len(data.episode))
    for k, policy in enumerate((PI, MU)):
        acts = policy if samples else np.eye(2)[np.argmax(policy, axis=1)]
        wanted = truth(acts, discount, STEPS if finite else 200)
        assert v[k, data.step == 0].mean() == pytest.approx(wanted, rel=0.03)


def test_a_sum_without_an_end_is_refused(data):
    with pytest.raises(ValueError, match="discount below 1"):
        fitted.fit(jax.random.key(0), DESIGN, ACTORS, data, SPACE, fitted.Config(finite=False))


def test_rows_in_parts_are_rows_at_once(monkeypatch):
    monkeypatch.setattr(off_policy, "ROWS", 4)
    x = jnp.arange(10.0)
    np.testing.assert_array_equal(off_policy.by_rows(lambda a: jnp.stack([a, 2 * a]), x), [x, 2 * x])
