"""What a learned policy for `gridjax.env.restoration` is compared with: waiting, a rule, and an upper bound.

The bound is the best of what a clairvoyant could do, by dynamic programming (R. Bellman, 1957) over all states of the
switches: with r(t, c) what an interval under configuration c costs,

    V(t, c) = max over c' = c or c with one switch moved of  r(t, c') - operation_price [c' != c] + V(t+1, c'),

where only radial configurations count in which nothing faulted is energised. Before the move, one of the devices that
had tripped at the beginning may close for nothing, as the environment has it, whether or not it was operated since.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.environment import Policy
from gridjax.env.restoration import Restoration
from gridjax.env.restoration_rules import RestorationParams, RestorationState, touched
from gridjax.powerflow.topology import islands_with, topology

MOST = 12  # switches for which all states are enumerated


def waiting(env: Restoration) -> Policy:
    """Does nothing: crews repair, and what has tripped closes again by itself."""

    def policy(key: jax.Array, obs: jax.Array, state: Any, memory: Any):
        del key, obs, state
        return env.nothing(), memory

    return policy


def greedy(env: Restoration, params: RestorationParams, *, tolerance: float = 1e-6) -> Policy:
    """The operator's rule: isolate what is faulted, then close what restores most without violating limits.

    While something faulted hangs together with healthy sections, a switch beside it is opened. Else, of the switches
    that join a dead island to a live one, the one is closed that restores the most weighted demand while voltages and
    currents violate their limits by no more than before. It returns nothing to normal afterwards.

    Args:
      env: the environment.
      params: of it, which the policy takes as known, not the future.
      tolerance: on violations, per unit.
    """
    quiet = dataclasses.replace(params, failures=dataclasses.replace(params.failures, severity=jnp.zeros(())))

    def policy(key: jax.Array, obs: jax.Array, state: RestorationState, memory: Any):
        del obs
        state = env.events(key, state, quiet)  # what will close by itself
        isolate = _isolating(state, params)
        restore = _restoring(env, state, params, tolerance)
        first = jnp.argmax(isolate) + 1
        action = jnp.where(jnp.any(isolate), first, jnp.where(jnp.any(restore > 0), jnp.argmax(restore) + 1, 0))
        return action[None].astype(jnp.int32), memory

    return policy


def _isolating(state: RestorationState, params: RestorationParams) -> jax.Array:
    """(switches,) closed ones that are faulted, or that tie a faulted section to another one."""
    sections = params.sections
    count, edges = sections.count, sections.edge[: sections.switches]
    faulted = state.repair_hours > 0
    beside = jnp.any(jnp.append(faulted[:count], jnp.zeros(sections.near.shape[0] - count, bool))[edges], axis=1)
    return state.closed & (faulted[count:] | beside)


def _restoring(env: Restoration, state: RestorationState, params: RestorationParams, tolerance: float) -> jax.Array:
    """(switches,) weighted kW that closing each restores; 0 where it may not be closed or violates limits."""
    demand = params.weight * params.grid.nominal.load_kw * env.multiplier(state, params)
    before = env.account(state, env.flow(state, params), params)[1]
    allowed = env.allowed(state, params)[1:] & ~state.closed

    def one(switch):
        after, _ = env.operate(state, state.closed, switch[None] + 1, params)
        gained = after.top.live[params.load_section] & ~state.top.live[params.load_section]
        flow = env.flow(after, params)
        fine = flow.converged & jnp.all(env.account(after, flow, params)[1] <= before + tolerance)
        return jnp.where(fine, jnp.sum(jnp.where(gained, demand, 0.0)), 0.0)

    return jnp.where(allowed, jax.vmap(one)(jnp.arange(len(env.switches))), 0.0)


def upper_bound(env: Restoration, params: RestorationParams) -> Callable[[RestorationState], jax.Array]:
    """The highest return that an episode from a state can have if nothing else fails.

    Args:
      env: the environment, with 12 switches that can be closed at most: all their states are enumerated.
      params: of it; `failures.severity` plays no part.

    Returns:
      A compiled function from an episode's first state to its bound, (). It ignores limits of voltage and current,
      as the reward does.

    Raises:
      ValueError: there are more switches.
    """
    movable = np.flatnonzero(np.asarray(params.closable))
    if len(movable) > MOST:
        raise ValueError(f"{len(movable)} switches have 2^{len(movable)} states: at most {MOST} can be enumerated")
    codes = np.arange(2 ** len(movable))
    closed = np.zeros((len(codes), len(env.switches)), bool)
    closed[:, movable] = codes[:, None] >> np.arange(len(movable)) & 1
    closed = closed[_radial(params, closed)]
    code = {tuple(c): i for i, c in enumerate(closed.tolist())}
    after = np.full((len(closed), len(movable)), len(closed))  # one past the last where there is no such state
    for i, c in enumerate(closed.tolist()):
        for j, k in enumerate(movable):
            after[i, j] = code.get((*c[:k], not c[k], *c[k + 1 :]), len(closed))
    tops = jax.vmap(lambda c: topology(params.sections, c, params.guard))(jnp.asarray(closed))
    table, reached = jnp.asarray(closed), jnp.asarray(after)

    @jax.jit
    def bound(state: RestorationState) -> jax.Array:
        return _bellman(env, params, state, (table, reached, tops, jnp.asarray(movable)))

    return bound


def _radial(params: RestorationParams, closed: np.ndarray) -> np.ndarray:
    """(configurations,) which make no loop and join no sources: as many components as sections less edges."""
    edges = np.asarray(params.sections.edge)
    switches, total, sources = closed.shape[1], params.sections.near.shape[0], params.sections.emf.shape[0]
    out = np.zeros(len(closed), bool)
    for i, c in enumerate(closed):
        root = np.arange(total)
        root[total - sources :] = total - 1  # all sources are one place

        def find(a, root=root):
            while root[a] != a:
                a = root[a]
            return a

        fine = True
        for e in [*np.flatnonzero(c), *range(switches, len(edges))]:
            a, b = (find(s) for s in edges[e])
            fine = fine and a != b
            root[a] = b
        out[i] = fine
    return out


def _bellman(env: Restoration, params: RestorationParams, state: RestorationState, tables) -> jax.Array:
    closed, reached, tops, movable = tables
    switches = closed.shape[1]

    def interval(t):
        """What each configuration earns in step t, minus infinity where it is not possible."""
        repair = jnp.maximum(state.repair_hours - t * params.hours, 0.0)
        now = dataclasses.replace(state, t=t, repair_hours=repair)

        def one(c, top):
            here = dataclasses.replace(now, closed=c, top=top)
            bad = touched(params, c, repair > 0)
            energised = jnp.any(islands_with(top, bad) & top.live)
            flow = env.flow(here, params)
            return jnp.where(energised | ~flow.converged, -jnp.inf, env.account(here, flow, params)[0])

        return jax.lax.map(lambda x: one(*x), (closed, tops), batch_size=128)

    free = state.tripped[movable][None] & ~closed[:, movable]

    def back(value, t):
        earned = jnp.append(interval(t), -jnp.inf)
        padded = earned + jnp.append(value, 0.0)
        moved = padded[reached] - params.prices.operation
        best = jnp.maximum(padded[:-1], jnp.max(moved, axis=1))
        # Before the move, one device that had tripped closes where that is possible.
        closes = free & jnp.isfinite(earned)[reached]
        others = jnp.where(closes, jnp.append(best, -jnp.inf)[reached], -jnp.inf)
        return jnp.maximum(best, jnp.max(others, axis=1)), None

    value, _ = jax.lax.scan(back, jnp.zeros(closed.shape[0], state.v.dtype), jnp.arange(env.horizon), reverse=True)
    here = jnp.sum(closed == state.closed[None], axis=1) == switches
    return jnp.max(jnp.where(here, value, -jnp.inf))
