"""What a restoration task is given, the state of one, and the rules of switching and protection in it.

Faults strike sections and switches; `touched` says which sections they make dangerous, `may_close` which switches may
be closed then, `trips` what protection opens. `gridjax.env.restoration` makes steps of them.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.grid import Grid
from gridjax.powerflow.topology import Sections, Topology, islands_with


@flax.struct.dataclass
class Prices:
    """Money, (): per unserved kWh (times the load's weight), per kWh lost, per operation, per refused move."""

    unserved: jax.Array
    loss: jax.Array
    operation: jax.Array
    refusal: jax.Array


@flax.struct.dataclass
class Failures:
    """What fails, and for how long. Locations are the sections, then the switches.

    Attributes:
      rate: (locations,) faults a year.
      repair_hours: (locations,) mean repair time, drawn from a lognormal distribution.
      repair_spread: () its standard deviation over its mean.
      at_once: (faults,) how likely an episode begins with one, two, ... faults.
      severity: () factor on the rates during the episode: 0 for no further faults, 1 for those of the year's mean.
    """

    rate: jax.Array
    repair_hours: jax.Array
    repair_spread: jax.Array
    at_once: jax.Array
    severity: jax.Array


@flax.struct.dataclass
class RestorationParams:
    """What may vary by scenario.

    Attributes:
      grid: the feeder with all switches closed, of which nominal powers, EMF, lines and ratings are used.
      sections: the feeder cut at its switches.
      multiplier: (days, steps, loads) of the nominal powers.
      failures: rates and repair times.
      normal: (switches,) bool, whether closed in normal operation, which is radial.
      guard: (switches,) bool, which trip on faults beyond them.
      closable: (switches,) bool, False for those that would feed a section through fewer phases than it has.
      customers: (loads,).
      weight: (loads,) of energy not served.
      load_section: (loads,).
      low: (nodes,) voltage limits in per unit.
      high: (nodes,) likewise.
      rating_a: (switches,).
      base_a: (switches,) amperes of one per unit.
      ends: (switches, 2, 3) their nodes, repeated where there are fewer.
      neighbour: (switches, neighbours) the others at either section, itself where there are fewer.
      prices: of the reward.
      hours: () length of a step.
    """

    grid: Grid
    sections: Sections
    multiplier: jax.Array
    failures: Failures
    normal: jax.Array
    guard: jax.Array
    closable: jax.Array
    customers: jax.Array
    weight: jax.Array
    load_section: jax.Array
    low: jax.Array
    high: jax.Array
    rating_a: jax.Array
    base_a: jax.Array
    ends: jax.Array
    neighbour: jax.Array
    prices: Prices
    hours: jax.Array


@flax.struct.dataclass
class RestorationState:
    """An episode's state.

    Attributes:
      day: () which.
      start: () the step of the day that it began with.
      t: () steps made.
      closed: (switches,) bool.
      tripped: (switches,) bool, opened by protection and not operated since.
      repair_hours: (locations,) left; 0 where nothing is faulted.
      served: (all sections,) bool, live at the end of the last interval, before the faults at the beginning.
      top: what follows from `closed`.
      v: (nodes,) voltage magnitudes in per unit, 0 where nothing is energised.
    """

    day: jax.Array
    start: jax.Array
    t: jax.Array
    closed: jax.Array
    tripped: jax.Array
    repair_hours: jax.Array
    served: jax.Array
    top: Topology
    v: jax.Array


def touched(params: RestorationParams, closed: jax.Array, faulted: jax.Array) -> jax.Array:
    """(all sections,) which are faulted, or touch a faulted switch that is closed."""
    sections = params.sections
    count, switches = sections.count, sections.switches
    hit = jnp.zeros(sections.near.shape[0], bool).at[:count].set(faulted[:count])
    on = faulted[count:] & closed
    return hit.at[sections.edge[:switches]].max(jnp.broadcast_to(on[:, None], (switches, 2)))


def may_close(params: RestorationParams, closed: jax.Array, top: Topology, faulted: jax.Array) -> jax.Array:
    """(switches,) which open switches may be closed; see the module's text."""
    sections = params.sections
    a, b = sections.edge[: sections.switches].T
    bad = islands_with(top, touched(params, closed, faulted))
    live = top.live
    energises = (live[a] & bad[b]) | (live[b] & bad[a])
    apart = (top.island[a] != top.island[b]) & ~(live[a] & live[b])
    return ~closed & params.closable & ~faulted[sections.count :] & apart & ~energises


def trips(params: RestorationParams, closed: jax.Array, top: Topology, faulted: jax.Array) -> jax.Array:
    """(switches,) which open on energised faults: a guard that is itself the fault, or the nearest upstream."""
    sections = params.sections
    count, switches = sections.count, sections.switches
    depth, (a, b) = top.depth, sections.edge[:switches].T
    upstream = jnp.where(depth[a] <= depth[b], a, b)
    number = jnp.arange(switches)
    line = faulted[count:] & closed & top.live[upstream]
    by_line = jnp.where(params.guard & line, number, jnp.where(line, top.guard[upstream], switches))
    by_section = jnp.where(faulted[:count] & top.live[:count], top.guard[:count], switches)
    out = jnp.zeros(sections.edge.shape[0] + 1, bool)
    return out.at[by_line].set(True).at[by_section].set(True)[:switches]
