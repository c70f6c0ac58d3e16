"""What a policy is worth from logs alone, without playing it.

What is estimated is the mean over the logged episodes' first observations of G = sum_t discount^t r_t, to each
episode's end, be that its own or the time limit's: with discount 1, the default, the return that the simulator counts
(`algorithms.evaluation`). With mu the behaviour, pi the evaluated policy and n episodes i,

    log rho_t = sum_{k <= t} log pi(a_k | s_k) - log mu(a_k | s_k),    rho_{-1} = 1
    PDIS      = 1/n sum_i sum_t discount^t rho_t r_t                                       (D. Precup et al., 2000)
    WIS       = sum_i sum_t discount^t w_t r_t,    w_t = rho_t / sum_i rho_t
    DR        = 1/n sum_i sum_t discount^t (rho_t (r_t - Q(s_t, a_t)) + rho_{t-1} V(s_t))  (N. Jiang and L. Li, 2016)
    WDR       = the same with w_t for rho_t / n         (P. S. Thomas and E. Brunskill, ICML 2016, eq. 11)

PDIS and DR are unbiased where mu takes every action that pi takes, with known probability; the weighted forms are
consistent and vary less. An episode that is over keeps its weight and earns nothing. Products over the horizon are
sums of logarithms here, and how many episodes they leave is told by (L. Kish, 1965)

    effective size = (sum_i rho_t)^2 / sum_i rho_t^2,

the smallest over t: with a handful, the weighted estimates are those few episodes' returns. The distribution "clipped"
counts with its normal density within -1 to 1; what lies beyond is missing from the weights.

Fitted Q evaluation is in `algorithms.fitted`; it needs no probabilities, but trusts its critic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.batches import Batch, from_dataset
from algorithms.spaces import Space
from algorithms.statistics import Interval, percentiles
from gridjax.env.datasets import Dataset

LEAST = 10.0  # effective episodes, below which a weighted estimate says nothing of the policy
ROWS = 4096  # of the data set that networks see at once


@dataclass(frozen=True)
class Log:
    """Episodes side by side, (episodes, steps), zero after an episode's end.

    Attributes:
      log_rho: logarithm of the weights' products up to each step; after an end the last.
      reward: of each step.
      q: of a critic at the logged actions; zeros without one.
      v: likewise the evaluated policy's mean value.
    """

    log_rho: np.ndarray
    reward: np.ndarray
    q: np.ndarray
    v: np.ndarray


def log_of(data: Dataset, log_prob: np.ndarray, q: np.ndarray | None = None, v: np.ndarray | None = None) -> Log:
    """Episodes of a data set under an evaluated policy.

    Args:
      data: the data set, whose log probabilities are the behaviours'.
      log_prob: (rows,) the evaluated policy's of the logged actions, see `log_probs`.
      q: (rows,) see `Log`.
      v: (rows,) likewise.

    Raises:
      ValueError: `unweighable(data)`.
    """
    reason = unweighable(data)
    if reason:
        raise ValueError(reason)
    ratio = np.asarray(log_prob, float) - np.asarray(data.log_probability, float)
    nothing = np.zeros(len(ratio))
    rows = (data.transitions.reward, nothing if q is None else q, nothing if v is None else v)
    return Log(np.cumsum(side_by_side(data, ratio), axis=1), *(side_by_side(data, np.asarray(a)) for a in rows))


def unweighable(data: Dataset) -> str:
    """Why no weights can be made for a data set, and the cure; empty where they can."""
    chance = np.asarray(data.log_probability)
    cure = "collect with behaviours named noisy-, or leave those episodes out with gridjax.env.datasets.take"
    unknown = np.bincount(data.episode, np.isnan(chance), data.episodes) > 0
    if unknown.any():
        who = _names(data, unknown)
        return f"the data set does not know the probabilities of the actions of {who}: {cure}"
    certain = np.bincount(data.episode, chance != 0.0, data.episodes) == 0
    if certain.any():
        return f"{_names(data, certain)} acted without chance, so that no weight leads to another policy: {cure}"
    return ""


def side_by_side(data: Dataset, values: np.ndarray) -> np.ndarray:
    """Values (rows,) as (episodes, steps of the longest), zero after an episode's end."""
    out = np.zeros((data.episodes, int(data.step.max()) + 1))
    out[data.episode, data.step] = values
    return out


def per_decision(log: Log, discount: float = 1.0) -> float:
    """PDIS; infinite where a weight is too large for a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(_discounts(log, discount) * np.exp(log.log_rho) * log.reward) / len(log.reward))


def weighted(log: Log, discount: float = 1.0) -> float:
    """WIS."""
    return float(np.sum(_discounts(log, discount) * _shares(log.log_rho) * log.reward))


def doubly_robust(log: Log, discount: float = 1.0) -> float:
    """DR; infinite or not a number where a weight is too large for a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _robust(log, np.exp(log.log_rho) / len(log.reward), discount)


def weighted_doubly_robust(log: Log, discount: float = 1.0) -> float:
    """WDR."""
    return _robust(log, _shares(log.log_rho), discount)


ESTIMATORS: dict[str, Callable[[Log, float], float]] = {
    "PDIS": per_decision,
    "WIS": weighted,
    "DR": doubly_robust,
    "WDR": weighted_doubly_robust,
}


def effective_size(log: Log) -> float:
    """Effective number of episodes, the smallest over the steps."""
    shares = _shares(log.log_rho)
    return float(np.min(1.0 / np.sum(shares**2, axis=0)))


def estimate(name: str, log: Log, *, seed: int, discount: float = 1.0, draws: int = 400) -> Interval:
    """An estimate with the percentile interval over resampled episodes; its ends say nothing of a critic's bias.

    Args:
      name: of `ESTIMATORS`.
      log: the episodes.
      seed: of the resampling.
      discount: see the module's text.
      draws: how often.
    """
    function, n = ESTIMATORS[name], len(log.reward)
    value = function(log, discount)
    if n < 2 or not np.isfinite(value):
        return Interval(value, np.nan, np.nan)

    def drawn(rng: np.random.Generator, some: int) -> np.ndarray:
        index = rng.integers(n, size=(some, n))
        return np.array([function(Log(log.log_rho[i], log.reward[i], log.q[i], log.v[i]), discount) for i in index])

    return Interval(value, *percentiles(drawn, seed, draws))


def log_probs(design: Any, params: Any, data: Dataset, space: Space) -> np.ndarray:
    """Logarithms of the probabilities that actors give the logged actions, (seeds, rows).

    Args:
      design: of the networks.
      params: of the actors, leading axis (seeds,).
      data: the data set.
      space: of the environment.
    """

    @jax.jit
    def some(params, batch: Batch):
        return jax.vmap(lambda p: design.act(p, batch.observation).log_prob(batch.action))(params)

    return by_rows(lambda part: some(params, part), from_dataset(data, space))


def by_rows(function: Callable[[Any], jax.Array], rows: Any) -> np.ndarray:
    """A function of rows with results (seeds, rows), some rows at a time."""
    count = jax.tree.leaves(rows)[0].shape[0]
    width = min(ROWS, count)
    parts = []
    for start in range(0, count, width):
        index = jnp.asarray(np.minimum(np.arange(start, start + width), count - 1))
        parts.append(np.asarray(function(jax.tree.map(lambda a, i=index: a[i], rows)))[:, : count - start])
    return np.concatenate(parts, axis=1)


def _robust(log: Log, weight: np.ndarray, discount: float) -> float:
    before = np.concatenate([np.full((len(weight), 1), 1.0 / len(weight)), weight[:, :-1]], axis=1)
    return float(np.sum(_discounts(log, discount) * (weight * (log.reward - log.q) + before * log.v)))


def _shares(log_rho: np.ndarray) -> np.ndarray:
    """Each episode's share of a step's weights, which add up to 1 also where all are too small for numbers."""
    weight = np.exp(log_rho - np.max(log_rho, axis=0, keepdims=True))
    return weight / np.sum(weight, axis=0, keepdims=True)


def _discounts(log: Log, discount: float) -> np.ndarray:
    return discount ** np.arange(log.reward.shape[1], dtype=float)[None]


def _names(data: Dataset, episodes: np.ndarray) -> str:
    return ", ".join(data.header["behaviours"][k] for k in np.unique(data.behaviour[episodes]))
