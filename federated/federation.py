"""Rounds: who is asked, the round, what stays with whom, and what has been spent.

In every round each group's sampler draws places, `federated.round` makes the round, and the clients that were present
get their states back. Under privacy the rounds stop before the budget would be exceeded, also over a run that was taken
up again: the ledgers of the groups go with the run. A client belongs to one group, and the groups' draws and sums are
independent of each other, so that what the run spends is the largest of what the groups spend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from federated.accounting import COARSE, Budget, Ledger, composed
from federated.block import Cohort
from federated.mechanism import Adjacency, Mechanism
from federated.round import Federation, Server, begin, ready, spread
from federated.sampling import Everyone, Sampler
from federated.work import Clients, Metrics, Tree, put, take


@dataclass(frozen=True)
class Plan:
    """How a federation is run; static.

    Attributes:
      federation: a round's.
      samplers: who is asked, for each group of clients.
      adjacency: what the privacy of a client means, see `federated.mechanism`.
      budget: that is never exceeded; None is none.
      own: what the work of each group of one client releases in a round by itself, its noise inside: a mechanism over
        that client's trajectories, and how often; () where noise is added by the federation, or by nobody.

    Raises:
      ValueError: not a sampler for each group, a budget without noise, or noise in two places.
    """

    federation: Federation
    samplers: tuple[Sampler, ...]
    adjacency: Adjacency = "zero-out"
    budget: Budget | None = None
    own: tuple[tuple[Mechanism, int], ...] = ()

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if len(self.samplers) != len(self.federation.works):
            raise ValueError(
                f"{len(self.samplers)} samplers for {len(self.federation.works)} groups: give one for each"
            )
        if self.own and (self.federation.private or len(self.own) != len(self.samplers)):
            raise ValueError("noise inside the clients is for all groups, and leaves none to add to their sum")
        if self.budget is not None and not self.private:
            raise ValueError("a budget without noise is never kept: give a noise_multiplier, or no budget")

    @property
    def private(self) -> bool:
        """Whether noise is added, by the federation or inside the clients."""
        return self.federation.private or bool(self.own)


@flax.struct.dataclass
class Progress:
    """The server, and all clients group by group."""

    server: Server
    groups: tuple[Clients, ...]


def start(plan: Plan, shared: Tree, groups: tuple[Clients, ...]) -> Progress:
    """Before the first round.

    Args:
      plan: how.
      shared: the parameters that are shared.
      groups: the clients, all of them; each group's have one shape.

    Raises:
      ValueError: no group for each work; or, under privacy, an `expected` that is not what the samplers expect.
    """
    federation = plan.federation
    if len(groups) != len(federation.works):
        raise ValueError(f"{len(groups)} groups of clients for {len(federation.works)} works: give one for each")
    expected = sum(s.expected(g.rows.shape[0]) for s, g in zip(plan.samplers, groups, strict=True))
    if federation.private and not np.isclose(federation.expected, expected):
        raise ValueError(f"expected {federation.expected:g}, but the samplers expect {expected:g} clients: give that")
    server = begin(federation, shared)
    return Progress(server, tuple(ready(federation, server, group) for group in groups))


def mechanisms(plan: Plan, progress: Progress) -> tuple[tuple[Mechanism, int], ...]:
    """Each group's, and how often in a round; empty without privacy."""
    if not plan.federation.private:
        return plan.own
    z = plan.federation.noise_multiplier
    numbers = [group.rows.shape[0] for group in progress.groups]
    each = zip(plan.samplers, numbers, strict=True)
    discrete = plan.federation.hardened
    return tuple(
        (Mechanism(z, s, sum(numbers) if isinstance(s, Everyone) else n, plan.adjacency, discrete), 1) for s, n in each
    )


def affordable(plan: Plan, progress: Progress, ledgers: tuple[Ledger, ...], rounds: int) -> int:
    """How many of so many further rounds the budget allows."""
    if plan.budget is None:
        return rounds
    each = zip(mechanisms(plan, progress), ledgers, strict=True)
    left = [
        rounds if ledger.allows(m, rounds * times, plan.budget) else ledger.rounds_left(m, plan.budget) // times
        for (m, times), ledger in each
    ]
    return min([rounds, *left])


def federate(
    plan: Plan,
    progress: Progress,
    key: jax.Array,
    noise_key: jax.Array | None = None,
    *,
    rounds: int,
    ledgers: tuple[Ledger, ...] | None = None,
    way: tuple[str, Mesh | None] = ("block", None),
    seen: Callable[[Progress, tuple[Ledger, ...], Metrics], Any] | None = None,
) -> tuple[Progress, tuple[Ledger, ...]]:
    """Makes rounds until there are so many, or the budget is spent.

    Args:
      plan: how.
      progress: from `start`, or from an earlier run.
      key: of everything random but the noise; round r draws from `fold_in(key, r)`. With noise inside the clients it is
        of that too: give `federated.noise.fresh_key()`.
      noise_key: of the noise, likewise; under privacy `federated.noise.fresh_key()`. Not used by hardened noise.
      rounds: in all, those of `progress` included.
      ledgers: of the groups, of an earlier run; None for a new one.
      way: how clients are spread, see `federated.round.spread`.
      seen: called after every round.

    Returns:
      The progress, and the ledgers with what these rounds released.

    Raises:
      ValueError: privacy without a key for the noise, or a progress with rounds but without its ledgers.

    Guarantees:
      The ledgers count a round before its result is handed to anyone. The same arguments give the same bits on the same
      machine, in one go or taken up after any round.
    """
    federation, done = plan.federation, int(progress.server.round)
    federation.check_noise(noise_key)
    if ledgers is None:
        if done and plan.private:
            raise ValueError(f"{done} rounds were made: give their ledgers, so that what was spent is counted")
        ledgers = tuple(Ledger() for _ in progress.groups)
    last = done + affordable(plan, progress, ledgers, max(rounds - done, 0))
    for r in range(done, last):
        if plan.private:
            each = zip(mechanisms(plan, progress), ledgers, strict=True)
            ledgers = tuple(ledger.after(m, times) for (m, times), ledger in each)
        noise = None if noise_key is None else jax.random.fold_in(noise_key, r)
        progress, metrics = _round(plan, way, jax.random.fold_in(key, r), noise, progress)
        if seen is not None:
            seen(progress, ledgers, metrics)
    return progress, ledgers


def spent(plan: Plan, ledgers: tuple[Ledger, ...], delta: float) -> float:
    """Epsilon at delta of all rounds so far, to be shown after every one: coarse, so up to a few 1e-4 too large.

    Infinite without noise.
    """
    if not plan.private:
        return float("inf")
    return max(composed(ledger.entries, delta, COARSE) for ledger in ledgers)


def _round(plan: Plan, way: tuple[str, Mesh | None], key: jax.Array, noise: jax.Array | None, progress: Progress):
    """One round, compiled as a whole, or by parts where each group has a program of its own."""
    return (_steps if way[0] == "groups" else _whole)(plan, way, key, noise, progress)


def _steps(plan: Plan, way: tuple[str, Mesh | None], key: jax.Array, noise: jax.Array | None, progress: Progress):
    draws, works = jax.random.split(key)
    cohorts, ids = _asked(plan.samplers, draws, progress.groups)
    server, after, metrics = spread(plan.federation, *way)(works, noise, progress.server, cohorts)
    present = tuple(cohort.present for cohort in cohorts)
    return Progress(server, _returned(progress.groups, ids, present, after)), metrics


@functools.partial(jax.jit, static_argnames=("samplers",))
def _asked(samplers: tuple[Sampler, ...], key: jax.Array, groups: tuple[Clients, ...]):
    """A cohort of each group, with the clients' numbers over all groups, and their places in the group."""
    cohorts, places, before = [], [], 0
    for g, (sampler, group) in enumerate(zip(samplers, groups, strict=True)):
        number = group.rows.shape[0]
        ids, present = sampler.draw(jax.random.fold_in(key, g), number)
        cohorts.append(Cohort(take(group, ids), ids + before, present))
        places.append(ids)
        before += number
    return tuple(cohorts), tuple(places)


@jax.jit
def _returned(groups: tuple[Clients, ...], ids: Any, present: Any, after: tuple[Clients, ...]) -> tuple[Clients, ...]:
    """All clients, those that were present as they are now."""
    return tuple(put(*one) for one in zip(groups, ids, present, after, strict=True))


_whole = jax.jit(_steps, static_argnames=("plan", "way"))
