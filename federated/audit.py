"""A privacy audit: what an attacker who sees the releases can tell of one client, as lower bounds on epsilon and mu.

A canary, an update in a random direction that only the attacker knows, is released with the others in some trials and
is absent (zeros) in as many. From the score <release, direction> the attacker says whether it was there. Of any
threshold, an (epsilon, delta)-private mechanism keeps the rates of true and false positives within

    TPR <= e^epsilon FPR + delta,     1 - FPR <= e^epsilon (1 - TPR) + delta
    epsilon >= log((TPR - delta) / FPR),     epsilon >= log((1 - FPR - delta) / (1 - TPR))

(P. Kairouz, S. Oh and P. Viswanath, 2015; as an audit M. Jagielski, J. Ullman and A. Oprea, "Auditing differentially
private machine learning", NeurIPS 2020, and M. Nasr et al., "Adversary instantiation", IEEE S&P 2021), and a Gaussian
mechanism, whose trade-off curve has the one number mu, within

    mu >= Phi^-1(TPR) - Phi^-1(FPR)       (M. Nasr et al., "Tight auditing", USENIX Security 2023; mu = 1 / z)
    delta = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)      (B. Balle and Y.-X. Wang, 2018)

The rates are replaced by their bounds of C. J. Clopper and E. S. Pearson (1934). Thresholds are chosen on one half of
the trials and the bounds taken on the other.

A bound above the claim proves a defect. A bound below it proves nothing: the canary may be a weak one. Without an
assumption epsilon cannot come out above about log(trials / 10), however bad the mechanism is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm

CANDIDATES = 400  # thresholds that are tried
STATEMENTS = 3  # epsilon by either rate, and mu; each of two bounded rates


@dataclass(frozen=True)
class Audit:
    """What was found; all bounds hold together with the confidence.

    Attributes:
      epsilon: lower bound at `delta`, of whatever mechanism; at least 0.
      mu: lower bound for a Gaussian mechanism, that is on 1 / z for one release; at least 0.
      gaussian_epsilon: epsilon of that mu at `delta`; a bound for Gaussian mechanisms only, and much the tighter one.
      delta: see there.
      confidence: that the bounds hold, over the audit's randomness.
      trials: releases with the canary, and as many without.
    """

    epsilon: float
    mu: float
    gaussian_epsilon: float
    delta: float
    confidence: float
    trials: int

    def text(self) -> str:
        """One line for people."""
        return (
            f"Audit by {self.trials} releases with and {self.trials} without a canary, confidence {self.confidence:g}: "
            f"epsilon is at least {self.epsilon:.2f} at delta {self.delta:g}; if the noise is Gaussian, at least "
            f"{self.gaussian_epsilon:.2f} (mu at least {self.mu:.3f})."
        )


def audit(
    release: Callable[[jax.Array, Any], Any],
    updates: Any,
    place: int,
    key: jax.Array,
    *,
    size: float,
    delta: float,
    trials: int = 4000,
    confidence: float = 0.95,
    host: bool = False,
) -> Audit:
    """Attacks a mechanism.

    Args:
      release: `(key, updates) -> tree`, the mechanism as it runs, with its clip, its noise and whatever may be wrong
        with them; the result has leaves like those of one client's update.
      updates: of the clients, leaves (clients, ...).
      place: the client whose update the canary replaces.
      key: of the canary and of the trials.
      size: norm of the canary; several times the clip, so that a clip that is missing shows.
      delta: of the claim that is audited.
      trials: releases with, and as many without, the canary.
      confidence: of the bounds.
      host: whether the mechanism runs on the host (`federated.hardened`) and cannot be compiled.

    Returns:
      The bounds.

    Raises:
      ValueError: numbers that make no sense, or a release that is not finite.

    Guarantees:
      A mechanism that is (epsilon, delta)-private for taking one client's update for zeros gets a larger `epsilon`, and
      a Gaussian one of that relation a larger `mu`, with a probability of at most 1 - confidence.
    """
    if trials < 40 or not (0 < confidence < 1 and 0 <= delta < 1 and size > 0):
        raise ValueError(
            f"{trials} trials, confidence {confidence}, delta {delta}, size {size}: take at least 40 trials, shares "
            "from 0 to 1 and a positive size"
        )
    aim, run = jax.random.split(key)
    unit = _direction(aim, jax.tree.map(lambda leaf: leaf[place], updates))
    worlds = [
        jax.tree.map(lambda leaf, u, f=factor: jnp.asarray(leaf).at[place].set(f * u), updates, unit)
        for factor in (0.0, size)
    ]
    scores = [
        _scores(release, world, unit, jax.random.split(k, trials), host)
        for world, k in zip(worlds, jax.random.split(run), strict=True)
    ]
    return bounds(*scores, delta=delta, confidence=confidence)


def bounds(without: np.ndarray, present: np.ndarray, *, delta: float, confidence: float) -> Audit:
    """The bounds by scores (trials,) without and with the canary, independent of one another.

    Raises:
      ValueError: different numbers of scores, or one that is not finite.
    """
    if without.shape != present.shape or not (np.isfinite(without).all() and np.isfinite(present).all()):
        raise ValueError("scores must be as many without as with the canary, and finite: does the mechanism diverge?")
    half, level = len(without) // 2, (1 - confidence) / (2 * STATEMENTS)

    def by_rates(low, high):
        return np.log(np.maximum(low - delta, 1e-300) / high)

    def by_quantiles(low, high):
        return norm.ppf(low) - norm.ppf(high)

    found = []
    # With signs turned, what is detected is that the canary is absent.
    for value, yes, no in (
        (by_rates, present, without),
        (by_rates, -without, -present),
        (by_quantiles, present, without),
    ):
        places = np.quantile(np.concatenate([yes[:half], no[:half]]), np.linspace(0, 1, CANDIDATES))
        first = value(*_rates(yes[:half], no[:half], places, level))
        best = places[int(np.argmax(first))][None]
        found.append(max(0.0, float(value(*_rates(yes[half:], no[half:], best, level))[0])))
    by_presence, by_absence, mu = found
    epsilon = max(by_presence, by_absence)
    return Audit(epsilon, mu, gaussian_epsilon(mu, delta), delta, confidence, len(without))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact epsilon at delta of one Gaussian mechanism of noise multiplier 1 / mu, a float of at least 0."""
    if mu <= 0 or 2 * norm.cdf(mu / 2) - 1 <= delta:
        return 0.0
    if delta <= 0:
        return math.inf

    def over(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)) - delta

    top = mu**2 / 2 - mu * norm.ppf(delta)  # where the first term alone is delta
    return float(brentq(over, 0.0, top))  # type: ignore[arg-type]


def _rates(yes: np.ndarray, no: np.ndarray, places: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower bound on P(yes > t) and upper bound on P(no > t) for each threshold t."""
    n = len(yes)
    hits, wrong = ((scores[None] > places[:, None]).sum(axis=1) for scores in (yes, no))
    low = np.where(hits > 0, beta.ppf(level, np.maximum(hits, 1), n - hits + 1), 0.0)
    high = np.where(wrong < n, beta.ppf(1 - level, wrong + 1, np.maximum(n - wrong, 1)), 1.0)
    return low, high


def _direction(key: jax.Array, tree: Any) -> Any:
    """A random direction of norm 1 over a whole pytree."""
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, jnp.shape(leaf), jnp.asarray(leaf).dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    length = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in drawn))
    return jax.tree.unflatten(form, [leaf / length.astype(leaf.dtype) for leaf in drawn])


def _scores(release: Callable, updates: Any, unit: Any, keys: jax.Array, host: bool) -> np.ndarray:
    """<release, unit> for each key."""

    def score(key):
        products = jax.tree.map(lambda a, u: jnp.vdot(a, u), release(key, updates), unit)
        return sum(jax.tree.leaves(products))

    if host:
        return np.array([float(score(key)) for key in keys])
    return np.asarray(jax.jit(lambda keys: jax.lax.map(score, keys, batch_size=256))(keys), float)
