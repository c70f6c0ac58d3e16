"""How an island lives through a step: quasi-steady, struck by a disturbance, swinging, quasi-steady again.

1. *Settle.* Secondary control has brought the frequency back to its nominal value: all sources give what is wanted of
   them and the grid-forming unit, at the slack of the power flow, the rest, losses included. Where that is beyond its
   limits (its rating, and what its energy allows for the step), diesels and batteries move in proportion to the room
   that they have, then photovoltaics; what is still short makes the frequency sag until the relay sheds block after
   block. Each of `ROUNDS` corrections is a power flow, since losses change.
2. *Swing.* The disturbance strikes, and the seconds after it are cut into inner steps (`Island.seconds`, of 0.1
   to 1 s). In each the network takes a constant power N, found by a power flow: sources that follow the grid give what
   their droop has come to, the further machines Pe = Pm - D S w - 2 H S w' with the slope w' of the step before, and
   the slack the rest; loads take 1 + k w of theirs (Kundur 1994, 11.1.1). Then the swing equation goes on under N
   (`gridjax.control.frequency`), and the relays look. So a machine at the slack takes a step alone for one inner step,
   and all share it by their inertias from the next on.
3. *Settle* once more, for the rest of the step, with what the relays dropped still off. The kinetic energy that the
   swing took is given back by the primary powers.

Every number of power is one that a power flow balances; energies are those powers times the time they last.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control.frequency import (
    Followers,
    Machines,
    Relay,
    RelayState,
    Swing,
    follow,
    inertia,
    mechanical,
    shed,
    swing,
    timer,
)
from gridjax.control.storage import Power, Storages, StorageState, operate, reach
from gridjax.env.lanes import pick
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow import results
from gridjax.powerflow.solve import PowerFlow, solve

ROUNDS = 2
TOLERANCE = 1e-10  # of the power flows, so that powers balance to 1e-9
SWING_STEPS = 10  # of the swing equation in each inner step
MARGIN = 0.01  # of the grid-forming unit's rating, kept by corrections, since losses change with them


@flax.struct.dataclass
class Limits:
    """When an island is lost; all ().

    Attributes:
      low, high: deviations of the frequency, per unit, beyond which all trips.
      trip_s: after so long.
      short: grid-forming unit's kVA over its rating that it bears for `short_s`.
      short_s: seconds.
      steady: and that it bears for good.
    """

    low: jax.Array
    high: jax.Array
    trip_s: jax.Array
    short: jax.Array
    short_s: jax.Array
    steady: jax.Array


@flax.struct.dataclass
class Island:
    """The plant at a grid whose first source is the grid-forming unit.

    The other sources stand in the order of `OperatingPoint.generation_kw`: d diesels, p photovoltaics, b batteries.

    Attributes:
      machines: (1 + d) the grid-forming unit and the diesels.
      followers: (p + b) photovoltaics and batteries.
      batteries: (b) their settings.
      store: (1) that of the grid-forming unit; None where it burns fuel.
      kva: (n,) ratings of the sources, without the grid-forming unit.
      relay: of the blocks, in the order in which they are shed; minus infinity where a block has none.
      block: (loads,) the block of each load.
      load_slope: () k, per unit of load for one per unit of frequency.
      limits: when it is lost.
      seconds: (k,) lengths of the inner steps.
      cloud_s: () how long a cloud takes to come.
    """

    machines: Machines
    followers: Followers
    batteries: Storages
    store: Storages | None
    kva: jax.Array
    relay: Relay
    block: jax.Array
    load_slope: jax.Array
    limits: Limits
    seconds: jax.Array
    cloud_s: jax.Array


@flax.struct.dataclass
class Request:
    """What is asked of an island.

    Attributes:
      point: the loads' demand, taps, capacitors and the grid-forming unit's voltage.
      kw, kvar: (n,) wanted of the sources.
      on: (n,) 1.0 where a source is in service.
      available_kw: (p,) of the photovoltaics.
      served: (blocks,) share of each block that is to be served.
    """

    point: OperatingPoint
    kw: jax.Array
    kvar: jax.Array
    on: jax.Array
    available_kw: jax.Array
    served: jax.Array


@flax.struct.dataclass
class Stores:
    """Energies of the batteries and of the grid-forming unit (None where it burns fuel)."""

    batteries: StorageState
    own: StorageState | None


@flax.struct.dataclass
class Settled:
    """A quasi-steady state: sources' kW (n,), blocks shed by the relay, point, flow, kVA of the slack, and if lost."""

    kw: jax.Array
    fallen: jax.Array
    point: OperatingPoint
    flow: PowerFlow
    slack: jax.Array
    solved: jax.Array
    lost: jax.Array


@flax.struct.dataclass
class Trace:
    """The swing, one entry an inner step.

    Attributes:
      seconds: its length, 0 after the island is lost.
      w_before, w: deviation that loads saw, and that at its end; `lowest`, `highest` on the way.
      slack: complex kVA of the grid-forming unit.
      kw: (n,) of the sources.
      available_kw: (p,) of the photovoltaics.
      fallen: (blocks,) whether the relay had dropped a block, as the power flow has it.
      mechanical_kws: (m,) energies of the primary powers. damped_kws: energy of the damping.
      wear_cost: of the batteries.
      solved: whether the power flow converged.
    """

    seconds: jax.Array
    w_before: jax.Array
    w: jax.Array
    lowest: jax.Array
    highest: jax.Array
    slack: jax.Array
    kw: jax.Array
    available_kw: jax.Array
    fallen: jax.Array
    mechanical_kws: jax.Array
    damped_kws: jax.Array
    wear_cost: jax.Array
    solved: jax.Array


@flax.struct.dataclass
class _Moment:
    swing: Swing
    slope: jax.Array
    kw: jax.Array  # of the followers
    relay: RelayState
    beyond_s: jax.Array
    short_s: jax.Array
    passed_s: jax.Array
    stores: Stores
    lost: jax.Array


def network(grid: Grid, island: Island, request: Request, kw: jax.Array, fallen: jax.Array, w: jax.Array):
    """The power flow with sources at `kw`, (n,), and blocks fallen: point, flow, and complex kVA of the slack, ().

    Reactive powers are those wanted, as far as the ratings leave room for them.
    """
    served = request.served * (1 - fallen)
    share = served[island.block] * (1 + island.load_slope * w)
    room = jnp.sqrt(jnp.maximum(island.kva**2 - kw**2, 1e-12))
    point = dataclasses.replace(
        request.point,
        load_kw=request.point.load_kw * share,
        load_kvar=request.point.load_kvar * share,
        generation_kw=kw,
        generation_kvar=request.on * jnp.clip(request.kvar, -room, room),
    )
    flow = solve(grid, point, tol=TOLERANCE)
    return point, flow, results.source_power(grid, point, flow)[0]


def demand(island: Island, request: Request) -> jax.Array:
    """What the blocks want, kW, (blocks,)."""
    none = jnp.zeros(request.served.shape, request.point.load_kw.dtype)
    return none.at[island.block].add(request.point.load_kw)


def bounds(island: Island, request: Request, stores: Stores, hours: jax.Array):
    """Lowest and highest kW of the sources, (n,) each, and of the grid-forming unit, for so many hours."""
    m, p = island.machines, request.available_kw.shape[0]
    d = m.kva.shape[0] - 1
    rated = island.batteries.kw_rated
    low, high = (jnp.clip(kw, -rated, rated) for kw in reach(island.batteries, stores.batteries, hours))
    lows = jnp.concatenate([m.kw_low[1:], jnp.zeros(p, low.dtype), low])
    highs = jnp.concatenate([m.kw_high[1:], request.available_kw, high])
    least, most = m.kw_low[0], m.kw_high[0]
    if island.store is not None and stores.own is not None:
        own = reach(island.store, stores.own, hours)
        least, most = jnp.maximum(least, own[0][0]), jnp.minimum(most, own[1][0])
    firm = jnp.arange(lows.shape[0])
    firm = (firm < d) | (firm >= d + p)
    return request.on * lows, request.on * highs, firm, (least, most)


def settle(
    grid: Grid, island: Island, request: Request, stores: Stores, hours: jax.Array, fallen: jax.Array
) -> Settled:
    """The quasi-steady state for the coming hours.

    Args:
      grid: the feeder.
      island: the plant.
      request: what is asked of it.
      stores: energies at the beginning.
      hours: () that it must last.
      fallen: (blocks,) booleans, blocks off already.
    """
    low, high, firm, own = bounds(island, request, stores, hours)
    rating, still = island.machines.kva[0], jnp.zeros_like(hours)

    def correct(carry, _):
        kw, fallen = carry
        point, flow, slack = network(grid, island, request, kw, fallen, still)
        seen = kw, fallen, point, flow, slack
        excess = slack.real - jnp.clip(slack.real, own[0] + MARGIN * rating, own[1] - MARGIN * rating)
        for movable in (firm, ~firm):
            room = jnp.where(movable, jnp.where(excess > 0, high - kw, kw - low), 0.0)
            total = jnp.sum(room)
            share = jnp.clip(jnp.abs(excess) / jnp.where(total > 0, total, 1.0), 0.0, 1.0)
            move = jnp.sign(excess) * share * room
            kw, excess = kw + move, excess - jnp.sum(move)
        standing = jnp.where(fallen, 0.0, demand(island, request) * request.served)
        before = jnp.cumsum(standing) - standing
        armed = jnp.isfinite(island.relay.below)
        return (kw, fallen | (armed & (excess > before + MARGIN / 2 * rating))), seen

    start = jnp.clip(request.kw, low, high), fallen
    _, seen = jax.lax.scan(correct, start, None, 1 + ROUNDS)  # one program of a power flow, not two
    kw, fallen, point, flow, slack = jax.tree.map(lambda a: a[-1], seen)
    tiny = 1e-6 * rating
    lost = (slack.real < own[0] - tiny) | (slack.real > own[1] + tiny)
    lost = lost | (jnp.abs(slack) > island.limits.steady * rating)
    return Settled(kw, fallen, point, flow, slack, jnp.all(seen[3].converged), lost)


def ride(grid: Grid, island: Island, before: Settled, request: Request, available_kw: jax.Array, stores: Stores):
    """The seconds after a disturbance.

    Args:
      grid: the feeder.
      island: the plant.
      before: the state that it strikes; of an island that is lost in it nothing is followed.
      request: what is asked after it; sources that follow the grid go on from what they gave, and photovoltaics come
        to what is available then in the time that a cloud takes.
      available_kw: (p,) of the photovoltaics before it.
      stores: energies at the beginning.

    Returns:
      The trace, the stores at its end, blocks that the relay dropped, and whether the island is lost.
    """
    d = island.machines.kva.shape[0] - 1
    reference = jnp.append(before.slack.real, before.kw[:d])
    # A diesel that gives nothing stands still.
    on = jnp.append(jnp.ones_like(reference[:1]), request.on[:d] * (before.kw[:d] > 0))
    zero = jnp.zeros_like(before.slack.real)
    start = _Moment(
        swing=Swing(zero, reference), slope=zero, kw=before.kw[d:],
        relay=RelayState(jnp.zeros_like(island.relay.below), before.fallen),
        beyond_s=zero, short_s=zero, passed_s=zero, stores=stores, lost=before.lost,
    )  # fmt: skip

    def inner(at, seconds):
        come = jnp.minimum((at.passed_s + seconds / 2) / island.cloud_s, 1.0)
        sun = available_kw + come * (request.available_kw - available_kw)
        now = dataclasses.replace(request, kw=before.kw, available_kw=sun)
        after, seen = _inner(grid, island, (reference, on), now, at, seconds)
        after = dataclasses.replace(after, lost=at.lost | after.lost)
        none = jax.tree.map(jnp.zeros_like, (seen.seconds, seen.mechanical_kws, seen.damped_kws, seen.wear_cost))
        quiet = dataclasses.replace(
            seen, seconds=none[0], mechanical_kws=none[1], damped_kws=none[2], wear_cost=none[3],
            w=at.swing.w, lowest=at.swing.w, highest=at.swing.w, solved=jnp.ones((), bool),
        )  # fmt: skip
        return pick(at.lost, at, after), pick(at.lost, quiet, seen)

    end, trace = jax.lax.scan(inner, start, island.seconds)
    return trace, end.stores, end.relay.fallen, end.lost


def _inner(grid: Grid, island: Island, machines, request: Request, at: _Moment, seconds: jax.Array):
    """One inner step: the moment after it and its trace; `machines` are the references and who is in service."""
    reference, on = machines
    m, limits, w, hours = island.machines, island.limits, at.swing.w, seconds / 3600
    d, p = m.kva.shape[0] - 1, request.available_kw.shape[0]
    low, high, _, _ = bounds(island, request, at.stores, hours)
    followed = follow(island.followers, at.kw, request.kw[d:], (low[d:], high[d:]), w, seconds)
    asked = Power(followed[p:], jnp.zeros_like(followed[p:]))
    given, batteries, books = operate(island.batteries, at.stores.batteries, asked, hours)
    given_kw = request.on[d + p :] * given.kw
    primary = mechanical(m, on, reference, at.swing)
    electric = primary - on * m.damping * m.kva * w - inertia(m, on) * at.slope
    kw = jnp.concatenate([electric[1:], followed[:p], given_kw])
    fallen = at.relay.fallen
    _, flow, slack = network(grid, island, request, kw, fallen, w)
    taken = slack.real + jnp.sum(electric[1:])
    moved, swung = swing(m, on, reference, at.swing, taken, seconds, SWING_STEPS)
    relay = shed(island.relay, at.relay, moved.w, seconds)
    beyond_s = timer(at.beyond_s, (moved.w < limits.low) | (moved.w > limits.high), seconds)
    short_s = timer(at.short_s, jnp.abs(slack) > limits.short * m.kva[0], seconds)
    lost = (beyond_s > limits.trip_s) | (short_s > limits.short_s)
    wear, own = jnp.sum(books.wear_cost), at.stores.own
    if island.store is not None and own is not None:
        _, own, mine = operate(island.store, own, Power(slack.real[None], jnp.zeros_like(slack.real)[None]), hours)
        lost = lost | (jnp.abs(mine.refused_kw[0]) > 1e-6 * m.kva[0])
        wear = wear + mine.wear_cost[0]
    after = _Moment(
        moved, swung.slope, followed, relay, beyond_s, short_s, at.passed_s + seconds, Stores(batteries, own), lost
    )
    seen = Trace(
        seconds, w, moved.w, swung.lowest, swung.highest, slack, kw, request.available_kw, fallen,
        swung.mechanical_kws, swung.damped_kws, wear, flow.converged,
    )  # fmt: skip
    return after, seen
