"""The hardened tier of the central mechanism: integers, discrete Gaussian noise, and the operating system's randomness.

C. L. Canonne, G. Kamath and T. Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020. A client's
update x (d numbers) is clipped and put on a grid of step C / Delta, integers k; the sum is exact, and noise is drawn
from the discrete Gaussian N_Z(0, sigma^2), P(y) ~ exp(-y^2 / (2 sigma^2)), for each number:

    k    = round(s x),    s = Delta / C  where that is small enough, else so that |s x| <= Delta - sqrt(d) / 2
    |k| <= |s x| + sqrt(d) / 2 <= Delta                                 (the rounding moves each number by at most 1/2)
    out  = (C / Delta) (sum_i k_i + y),    y ~ N_Z(0, sigma^2)^d,    sigma^2 = ceil(z^2 Delta^2)
    rho  = Delta^2 / (2 sigma^2)           zero-concentrated privacy of adding or removing one client (theorem 14)

Everything between the rounding and the last product is integer arithmetic: the sum does not depend on an order, the
noise is drawn exactly, and no property of floating-point numbers can tell what was added to what (I. Mironov, "On
significance of the least significant bits for differential privacy", 2012).

It runs on the host, outside jit, and takes no key: noise that a seed could repeat is noise that who knows the seed can
take off again. Known limits: how long the sampler runs depends on what it draws, so a client must not be able to time
it; and the updates were computed in floating point before, which is the client's own affair.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import numpy as np

Source = Callable[[int], bytes]  # so many random bytes


@dataclass(frozen=True)
class Hardened:
    """The mechanism; static.

    Attributes:
      clip: C, of the global norm of one client's update.
      noise_multiplier: z, the noise's standard deviation over C.
      sensitivity: Delta, C in steps of the grid. More than sqrt(d), and many times sqrt(d) to clip no tighter than C.

    Raises:
      ValueError: numbers that make no sense.
    """

    clip: float
    noise_multiplier: float
    sensitivity: int = 2**14

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        if not (0 < self.clip < math.inf and 0 < self.noise_multiplier < math.inf):
            raise ValueError(f"{self}: take a positive clip and a positive noise multiplier")
        if not 1 <= self.sensitivity <= 2**40:
            raise ValueError(f"sensitivity {self.sensitivity}: take an integer from 1 to 2^40")

    @property
    def step(self) -> float:
        """Of the grid, C / Delta."""
        return self.clip / self.sensitivity

    @property
    def variance(self) -> int:
        """sigma^2 in steps of the grid: z^2 Delta^2, rounded up."""
        return math.ceil(Fraction(self.noise_multiplier) ** 2 * self.sensitivity**2)

    @property
    def rho(self) -> float:
        """Of zero-concentrated privacy, for one release; several add up. `accounting.epsilon_of_zcdp` converts it."""
        return float(np.nextafter(self.sensitivity**2 / (2 * self.variance), np.inf))


def on_grid(update: Any, config: Hardened) -> np.ndarray:
    """A client's update as integers k, (d,) int64.

    Args:
      update: a pytree of floating numbers; leaves in the order of `jax.tree.leaves`.
      config: the mechanism.

    Raises:
      ValueError: the grid is too coarse for so many numbers.

    Guarantees:
      The sum of the squares of k is at most Delta^2, in exact arithmetic, whatever the update is. An update that is not
      finite becomes zeros.
    """
    x = _flat(update)
    room = math.sqrt(len(x)) / 2
    if config.sensitivity <= 2 * room:
        raise ValueError(
            f"sensitivity {config.sensitivity} leaves no room for rounding {len(x)} numbers: take more than "
            f"{math.ceil(2 * room)}, or 50 times that to lose a hundredth of the clip"
        )
    most = float(np.max(np.abs(x), initial=0.0))
    if most == 0.0 or not math.isfinite(most):
        return np.zeros(len(x), np.int64)
    direction = x / most  # so that no square overflows
    length = float(np.sqrt(np.sum(direction**2)))
    # The share of the grid that the update may fill: a little less than the bound, for the rounding of the norm itself.
    fill = min(most / config.step * length, (config.sensitivity - room) * (1 - 1e-9))
    k = np.rint(direction * (fill / length)).astype(np.int64)
    if _squares(k) > config.sensitivity**2:
        raise AssertionError(f"{len(k)} integers exceed the sensitivity {config.sensitivity}: please report this")
    return k


def hardened_sum(updates: Any, present: np.ndarray, config: Hardened, *, source: Source = os.urandom) -> Any:
    """The noisy sum of clients' updates.

    Args:
      updates: leaves (clients, ...).
      present: (clients,) 1 where a client takes part, else 0.
      config: the mechanism.
      source: of random bytes; give another one in tests only.

    Returns:
      A pytree of one update, leaves (...) double precision. Divide it by the public number of expected clients.

    Raises:
      ValueError: no clients, or a grid that is too coarse or overflows.

    Guarantees:
      `Hardened.rho` zero-concentrated privacy for adding or removing one client, in exact arithmetic, if the source's
      bytes are uniform and independent. Without the noise, the same bits in any order of the clients.
    """
    leaves, form = jax.tree.flatten(updates)
    leaves = [np.asarray(leaf) for leaf in leaves]
    who = np.flatnonzero(np.asarray(present))
    size = sum(math.prod(leaf.shape[1:]) for leaf in leaves)
    if max(len(who), 1) * config.sensitivity + 100 * math.isqrt(config.variance) >= 2**62:
        raise ValueError(f"sums of {len(who)} clients do not fit into 64 bits: take a smaller sensitivity or noise")
    total = np.zeros(size, np.int64)
    for client in who:
        total += on_grid([leaf[client] for leaf in leaves], config)
    noisy = (total + discrete_gaussian(config.variance, size, source)) * config.step
    ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])[:-1]
    parts = np.split(noisy, ends)
    return jax.tree.unflatten(form, [p.reshape(leaf.shape[1:]) for p, leaf in zip(parts, leaves, strict=True)])


def discrete_gaussian(variance: int, count: int, source: Source = os.urandom) -> np.ndarray:
    """Exact samples of N_Z(0, variance), (count,) int64 (algorithm 3)."""
    if variance < 1:
        raise ValueError(f"variance {variance}: take an integer of at least 1, a finer grid if need be")
    scale = math.isqrt(variance) + 1
    out, open_places = np.zeros(count, np.int64), np.arange(count)
    while len(open_places):
        y = discrete_laplace(scale, len(open_places), source)
        # exp(-(|y| - sigma^2 / t)^2 / (2 sigma^2)), of integers: (t |y| - sigma^2)^2 / (2 sigma^2 t^2)
        gap = (np.abs(y).astype(object) * scale - variance) ** 2
        taken = _bernoulli_exp(gap, 2 * variance * scale**2, source)
        out[open_places[taken]] = y[taken]
        open_places = open_places[~taken]
    return out


def discrete_laplace(scale: int, count: int, source: Source = os.urandom) -> np.ndarray:
    """Exact samples of P(y) ~ exp(-|y| / scale), (count,) int64 (algorithm 2 with s = 1)."""
    out, open_places = np.zeros(count, np.int64), np.arange(count)
    while len(open_places):
        u = _below(scale, len(open_places), source)
        kept = _bernoulli_exp_small(u, scale, source)
        places, u = open_places[kept], u[kept].astype(np.int64)
        v = np.zeros(len(u), np.int64)
        going = np.arange(len(u))
        while len(going):
            going = going[_bernoulli_exp_small(np.ones(len(going), np.int64), 1, source)]
            v[going] += 1
        size, negative = u + scale * v, _below(2, len(u), source) == 1
        valid = ~(negative & (size == 0))  # or 0 would be twice as likely as it is
        out[places[valid]] = np.where(negative, -size, size)[valid]
        left = np.ones(count, bool)
        left[places[valid]] = False
        open_places = open_places[left[open_places]]
    return out


def _bernoulli_exp(numerator: np.ndarray, denominator: int, source: Source) -> np.ndarray:
    """Whether each of so many events of probability exp(-numerator / denominator) happens."""
    whole, rest = numerator // denominator, numerator % denominator
    happens = _bernoulli_exp_small(rest, denominator, source)
    for k in range(int(max(whole, default=0))):
        asked = np.flatnonzero(happens & (whole > k))
        if not len(asked):
            break
        happens[asked] = _bernoulli_exp_small(np.ones(len(asked), np.int64), 1, source)
    return happens


def _bernoulli_exp_small(numerator: np.ndarray, denominator: int, source: Source) -> np.ndarray:
    """Likewise where numerator <= denominator (algorithm 1): the first k that fails is odd."""
    k, going = np.ones(len(numerator), np.int64), np.arange(len(numerator))
    trial = 1
    while len(going):
        going = going[_below(denominator * trial, len(going), source) < numerator[going]]
        k[going] += 1
        trial += 1
    return k % 2 == 1


def _below(bound: int, count: int, source: Source) -> np.ndarray:
    """Uniform integers from 0 to bound - 1, (count,), by rejection; of Python's kind where 64 bits are too few."""
    if bound == 1:
        return np.zeros(count, np.int64)
    bits = (bound - 1).bit_length()
    if bits <= 63:
        out = _words(count, source) >> np.uint64(64 - bits)
        while len(again := np.flatnonzero(out >= bound)):
            out[again] = _words(len(again), source) >> np.uint64(64 - bits)
        return out.astype(np.int64)
    size = (bits + 7) // 8
    found: list[int] = []
    while len(found) < count:
        data = source(size * (count - len(found)))
        tried = (int.from_bytes(data[i : i + size], "little") >> (8 * size - bits) for i in range(0, len(data), size))
        found += [n for n in tried if n < bound]
    return np.array(found, dtype=object)


def _words(count: int, source: Source) -> np.ndarray:
    data = source(8 * count)
    if len(data) != 8 * count:
        raise ValueError(f"the source gave {len(data)} bytes of {8 * count}: it must give as many as are asked for")
    return np.frombuffer(data, np.uint64).copy()


def _flat(update: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(update))])


def _squares(k: np.ndarray) -> int:
    """The sum of squares, exactly."""
    return int(np.sum(k.astype(object) ** 2)) if len(k) else 0
