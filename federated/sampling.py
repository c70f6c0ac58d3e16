"""Which clients take part in a round: static shapes, and exactly what the accounting assumes.

    Everyone   all n clients in every round
    Poisson    each client by an own coin of probability q; of more than B a uniformly random subset of B stays
    FixedSize  s of n clients, uniformly without replacement

The truncated Poisson sampling has B places whether or not they are filled, so that a round compiles once; it is what
arXiv:2508.15089 and dp-accounting's `TruncatedSubsampledGaussianDpEvent` account for. The denominator of a round is
n, q n or s: public constants, never the number of those who came.

A client that is drawn and drops out of the round may be counted as absent: with noise on the sum this costs signal,
not privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Everyone:
    """All clients, every round."""

    def places(self, clients: int) -> int:
        """Clients that a round has room for."""
        return clients

    def expected(self, clients: int) -> float:
        """The fixed public denominator."""
        return float(clients)

    def draw(self, key: jax.Array, clients: int) -> tuple[jax.Array, jax.Array]:
        """As `Poisson.draw`, in order; the key is not used."""
        _needed(key)
        return jnp.arange(clients, dtype=jnp.int32), jnp.ones(clients, jnp.float32)


@dataclass(frozen=True)
class Poisson:
    """Each client by its own coin, cut to a fixed number of places.

    Attributes:
      rate: q, above 0 and at most 1.
      most: B, places of a round; about q n + 4 sqrt(q n) costs next to nothing in epsilon.
    """

    rate: float
    most: int

    def __post_init__(self):
        if not 0 < self.rate <= 1 or self.most < 1:
            raise ValueError(f"{self}: take a rate above 0 and at most 1, and at least 1 place")

    def places(self, clients: int) -> int:
        """Clients that a round has room for: `most`, and no more than there are."""
        return min(self.most, clients)

    def expected(self, clients: int) -> float:
        """The fixed public denominator, q n."""
        return self.rate * clients

    def draw(self, key: jax.Array, clients: int) -> tuple[jax.Array, jax.Array]:
        """The clients of a round.

        Args:
          key: of this round's draw, a secret like the noise: the amplification by sampling rests on it.
          clients: n, static.

        Returns:
          ids: (places,) int32, all different. Those of absent places are clients that were not drawn, so that gathering
            works; what is scattered back to them must be masked by `present`, or it overwrites their state.
          present: (places,) float32, 1.0 for a client that takes part and 0.0 for an empty place; the ones come first.
        """
        _needed(key)
        coins, order = jax.random.split(key)
        drawn = jax.random.bernoulli(coins, self.rate, (clients,))
        # Those drawn first, and both groups in random order: whoever is cut is a uniformly random subset.
        rank = jax.random.permutation(order, clients) + jnp.where(drawn, 0, clients)
        places = self.places(clients)
        ids = jnp.argsort(rank)[:places].astype(jnp.int32)
        return ids, (jnp.arange(places) < jnp.sum(drawn)).astype(jnp.float32)


@dataclass(frozen=True)
class FixedSize:
    """A fixed number of clients, uniformly without replacement.

    Attributes:
      size: s, at least 1 and at most the number of clients.
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"{self}: take at least 1 client a round")

    def places(self, clients: int) -> int:
        """Clients that a round has room for.

        Raises:
          ValueError: there are fewer clients.
        """
        if self.size > clients:
            raise ValueError(f"{self} of {clients} clients: take at most {clients}, or Everyone()")
        return self.size

    def expected(self, clients: int) -> float:
        """The fixed public denominator."""
        return float(self.places(clients))

    def draw(self, key: jax.Array, clients: int) -> tuple[jax.Array, jax.Array]:
        """As `Poisson.draw`; every place is filled."""
        _needed(key)
        places = self.places(clients)
        return jax.random.permutation(key, clients)[:places].astype(jnp.int32), jnp.ones(places, jnp.float32)


Sampler = Everyone | Poisson | FixedSize
KINDS: dict[str, Any] = {"everyone": Everyone, "poisson": Poisson, "fixed-size": FixedSize}


def to_dict(sampler: Sampler) -> dict[str, Any]:
    """A sampler as JSON has it."""
    kind = next(name for name, of in KINDS.items() if isinstance(sampler, of))
    return {"kind": kind, **vars(sampler)}


def from_dict(data: Any) -> Sampler:
    """What `to_dict` wrote.

    Raises:
      ValueError: another kind, or fields that are missing, unknown or make no sense.
    """
    fields = {"everyone": {}, "poisson": {"rate": (int, float), "most": int}, "fixed-size": {"size": int}}
    wanted = fields.get(data.get("kind", "")) if isinstance(data, dict) else None
    if wanted is None or set(data) != {"kind", *wanted}:
        raise ValueError(f"no sampler: {data!r}; the kinds and their fields are {fields}")
    for name, kind in wanted.items():
        if isinstance(data[name], bool) or not isinstance(data[name], kind):
            raise ValueError(f"a sampler's {name} is {data[name]!r}: a number is wanted")
    return KINDS[data["kind"]](**{name: data[name] for name in wanted})


def _needed(key: Any) -> None:
    if key is None:
        raise ValueError("a draw of clients needs a key: give jax.random.key(...)")
