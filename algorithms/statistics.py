"""Statistics of returns: interquartile means, bootstrap and Student intervals, differences on the same days.

The interquartile mean (R. Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice",
NeurIPS 2021) is the mean of the middle half of all values of all seeds. Their percentile intervals resample runs with
replacement within each task, the stratum: runs on two tasks are trained apart. Here one agent plays all days of its
environment, and a seed that is lucky is so on every day; so seeds are resampled as whole rows and days as whole columns
of (seeds, days) (A. B. Owen, "The pigeonhole bootstrap", 2007), and the strata are environments:

    seeds* ~ seeds,  days* ~ days,  x* = statistic(values[seeds*, days*]),  interval: the percentiles of x*

Student's interval over n independent values is

    mean +- t_{(1 + level) / 2, n-1} s / sqrt(n),    s^2 = sum (x - mean)^2 / (n - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Statistic = Callable[..., Any]
MOST = 2**20  # numbers that are resampled at once


class Interval(NamedTuple):
    """A statistic of all values, and the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


def iqm(values: np.ndarray, axis: int | None = None) -> Any:
    """Interquartile mean along an axis, or of all entries: a quarter, rounded down, is left out at either end."""
    a = np.asarray(values, float)
    a = a.ravel() if axis is None else np.moveaxis(a, axis, -1)
    n = a.shape[-1]
    cut = n // 4
    out = np.partition(a, (cut, n - cut - 1), axis=-1)[..., cut : n - cut].mean(axis=-1)
    return float(out) if axis is None else out


def mean(values: np.ndarray, axis: int | None = None) -> Any:
    """Mean along an axis, or of all entries."""
    out = np.mean(values, axis=axis)
    return float(out) if axis is None else out


def bootstrap(
    values: np.ndarray | Sequence[np.ndarray],
    statistic: Statistic = iqm,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A statistic with its percentile interval.

    Args:
      values: (seeds, days); or several such arrays, the strata, which are resampled each for itself and whose values
        the statistic then sees together: scale them to the same units before.
      statistic: `(values, axis) -> values` without that axis, as `iqm` and `mean`.
      seed: of the resampling.
      draws: how often.
      level: of the interval.

    Returns:
      NaN for both ends where nothing can be resampled, as there is one seed and one day.

    Raises:
      ValueError: arrays of other shapes, values that are not finite, or numbers that make no sense.

    Guarantees:
      The same arguments give the same interval.
    """
    strata = [np.asarray(v, float) for v in ([values] if isinstance(values, np.ndarray) else values)]
    if not strata or any(v.ndim != 2 or not v.size or not np.isfinite(v).all() for v in strata):
        raise ValueError("takes finite values (seeds, days), at least one; leave out what did not finish, and say so")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"{draws} draws at level {level}: take at least one, and a level between 0 and 1")
    value = statistic(np.concatenate([v.ravel() for v in strata]), axis=-1)
    if all(v.size == 1 for v in strata):
        return Interval(float(value), np.nan, np.nan)

    def drawn(rng: np.random.Generator, some: int) -> np.ndarray:
        parts = [_crossed(v, *(rng.integers(n, size=(some, n)) for n in v.shape)) for v in strata]
        return statistic(np.concatenate([part.reshape(some, -1) for part in parts], axis=1), axis=-1)

    return Interval(float(value), *percentiles(drawn, seed, draws, level, sum(v.size for v in strata)))


def student(values: np.ndarray, level: float = 0.95) -> Interval:
    """The mean of independent values (n,), with Student's interval; NaN for its ends where there are fewer than two.

    Of (seeds, days) give the seeds' means: days that one agent played say nothing of another training.
    """
    flat = np.asarray(values, float)
    if flat.ndim != 1 or not flat.size:
        raise ValueError(f"values of shape {flat.shape}: give independent ones, (n,)")
    n, middle = flat.size, float(flat.mean())
    if n < 2:
        return Interval(middle, np.nan, np.nan)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * flat.std(ddof=1) / np.sqrt(n))
    return Interval(middle, middle - half, middle + half)


def paired(
    values: np.ndarray, other: np.ndarray, statistic: Statistic = mean, *, seed: int, draws: int = 2000
) -> Interval:
    """By how much values (seeds, days) exceed others (seeds or 1, days) on the same days, with the interval.

    Seeds of both are resampled, each for themselves, and days, which are the same of both.

    Raises:
      ValueError: other days, or values that are not finite.
    """
    values, other = np.asarray(values, float), np.asarray(other, float)
    if values.ndim != 2 or other.ndim != 2 or values.shape[1] != other.shape[1] or not values.size * other.size:
        raise ValueError(f"{values.shape} and {other.shape} are not seeds and the same days")
    if not (np.isfinite(values).all() and np.isfinite(other).all()):
        raise ValueError("takes finite values; leave out the days that did not finish, and say so")

    def gain(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        gained = ours - theirs.mean(axis=1, keepdims=True)
        return statistic(gained.reshape(len(gained), -1), axis=-1)

    def drawn(rng: np.random.Generator, some: int) -> np.ndarray:
        days = rng.integers(values.shape[1], size=(some, values.shape[1]))
        return gain(*(_crossed(a, rng.integers(len(a), size=(some, len(a))), days) for a in (values, other)))

    value = float(gain(values[None], other[None])[0])
    if values.size == other.size == 1:
        return Interval(value, np.nan, np.nan)
    return Interval(value, *percentiles(drawn, seed, draws, size=values.size + other.size))


def percentiles(
    drawn: Callable[[np.random.Generator, int], np.ndarray], seed: int, draws: int, level: float = 0.95, size: int = 1
) -> tuple[float, float]:
    """The ends of the middle `level` of so many draws.

    Args:
      drawn: `(generator, some) -> (some,)`.
      seed: of the generator.
      draws: how many.
      level: of the interval.
      size: numbers that one draw looks at, which bounds how many are drawn at once.
    """
    rng = np.random.default_rng(seed)
    some = max(1, MOST // max(size, 1))
    found = np.concatenate([drawn(rng, min(some, draws - start)) for start in range(0, draws, some)])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _crossed(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(draws, rows, columns) of values by their numbers (draws, rows) and (draws, columns)."""
    return values[rows[:, :, None], columns[:, None, :]]
