r"""Reliability of supply: indices of an outage log, major event days, and what failure rates let expect.

*Of a log* (IEEE Std 1366-2022, clause 3). With N_T customers served, and N_i customers interrupted for r_i by
interruption i,

    SAIFI = sum N_i / N_T       SAIDI = sum r_i N_i / N_T      CAIDI = SAIDI / SAIFI     over the sustained ones,
    CAIFI = sum N_i / CN        CTAIDI = sum r_i N_i / CN      CN customers with at least one of these,
    ASAI  = 1 - sum r_i N_i / (N_T T)                          T the time the log covers,
    ASIFI, ASIDI: SAIFI and SAIDI with connected power in place of customers,
    MAIFI = sum IM_i N_i / N_T over momentary interruptions, MAIFI_E likewise over momentary events.

Momentary are interruptions of 5 minutes at most. Those of the same customers that begin within 5 minutes of the first
make one event, which does not count where a sustained interruption follows in that time. The energy not served is taken
as power times duration, over sustained interruptions and momentary ones.

*Major event days* (clause 3.5): with alpha and beta the mean and the standard deviation (with n - 1) of the natural
logarithms of daily SAIDI, days without any interruption left out, `T_MED = exp(alpha + 2.5 beta)`. An interruption
counts in full on the day on which it begins.

*Expected* (R. Billinton and R. N. Allan, "Reliability evaluation of power systems", 1996, chapter 7). A fault in a
section interrupts all that lies beyond the protective device upstream of it. Once switches have isolated it, what they
part from it comes back, upstream from the source and downstream over a tie if there is one; the rest waits for repair.
Without switches and ties this is what OpenDSS's RelCalc computes (docs/reliability.md).

The standard's definitions and clauses are from memory and were not checked against its text.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

MOMENTARY_MIN = 5.0
DAYS_OUT = 2.5


@flax.struct.dataclass
class Outages:
    """An outage log: one row for each interruption of each load point, in any order.

    A load point is customers who are interrupted together; an outage that reaches several, or that ends for some sooner
    than for others, has several rows.

    Attributes:
      point: (rows,) number of the load point.
      start_h: (rows,) when it began, in hours of the log.
      minutes: (rows,) how long it lasted; 0 for a row that only pads.
    """

    point: jax.Array
    start_h: jax.Array
    minutes: jax.Array


@flax.struct.dataclass
class Indices:
    """Indices, each (); those per interruption are not numbers where there was none.

    Durations are in hours, energy in kWh. MAIFI and its like are 0 where momentary interruptions are not modelled.
    """

    saifi: jax.Array
    saidi_h: jax.Array
    caidi_h: jax.Array
    asai: jax.Array
    maifi: jax.Array
    maifi_e: jax.Array
    caifi: jax.Array
    ctaidi_h: jax.Array
    asifi: jax.Array
    asidi_h: jax.Array
    ens_kwh: jax.Array
    aens_kwh: jax.Array


def of_log(log: Outages, customers: jax.Array, kw: jax.Array, hours: float | jax.Array) -> Indices:
    """The indices of an outage log.

    Args:
      log: rows.
      customers: (load points,).
      kw: (load points,) connected power, taken as what they miss.
      hours: what the log covers; indices are of that time, not per year.
    """
    real = log.minutes > 0
    sustained = log.minutes > MOMENTARY_MIN
    people, power = customers[log.point], kw[log.point]
    total, total_kw = jnp.sum(customers), jnp.sum(kw)
    hurt = jnp.zeros(customers.shape, bool).at[log.point].max(sustained)
    distinct = jnp.sum(jnp.where(hurt, customers, 0.0))
    number = jnp.sum(jnp.where(sustained, people, 0.0))
    duration = jnp.sum(jnp.where(sustained, people * log.minutes, 0.0)) / 60
    ens = jnp.sum(jnp.where(real, power * log.minutes, 0.0)) / 60
    return Indices(
        saifi=number / total,
        saidi_h=duration / total,
        caidi_h=_ratio(duration, number),
        asai=1 - duration / (total * hours),
        maifi=jnp.sum(jnp.where(real & ~sustained, people, 0.0)) / total,
        maifi_e=_momentary_events(log, customers) / total,
        caifi=_ratio(number, distinct),
        ctaidi_h=_ratio(duration, distinct),
        asifi=jnp.sum(jnp.where(sustained, power, 0.0)) / total_kw,
        asidi_h=jnp.sum(jnp.where(sustained, power * log.minutes, 0.0)) / 60 / total_kw,
        ens_kwh=ens,
        aens_kwh=ens / total,
    )


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """The quotient, not a number where b is 0; derivatives stay finite."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), jnp.nan)


def _momentary_events(log: Outages, customers: jax.Array) -> jax.Array:
    """Customers times momentary events, ()."""
    rows = log.point.shape[0]
    order = jnp.lexsort((log.start_h, log.point, log.minutes <= 0))
    point, start, minutes = log.point[order], log.start_h[order], log.minutes[order]

    def number(carry, row):
        event, last, first = carry
        here, now = row
        same = (here == last) & (now <= first + MOMENTARY_MIN / 60)
        event = jnp.where(same, event, event + 1)
        first = jnp.where(same, first, now)
        return (event, here, first), event

    begin = jnp.asarray(-1), jnp.asarray(-1, point.dtype), jnp.asarray(-jnp.inf, start.dtype)
    event = jax.lax.scan(number, begin, (point, start))[1]
    lasting = jnp.zeros(rows, bool).at[event].max(minutes > MOMENTARY_MIN)
    people = jnp.zeros(rows, customers.dtype).at[event].max(jnp.where(minutes > 0, customers[point], 0.0))
    return jnp.sum(jnp.where(lasting, 0.0, people))


def daily_saidi(log: Outages, customers: jax.Array, days: int) -> jax.Array:
    """SAIDI of each day in minutes, (days,); an interruption counts on the day on which it begins. `days` is static."""
    lost = jnp.where(log.minutes > MOMENTARY_MIN, customers[log.point] * log.minutes, 0.0)
    day = jnp.floor(log.start_h / 24).astype(jnp.int32)
    return jnp.zeros(days, lost.dtype).at[day].add(lost, mode="drop") / jnp.sum(customers)


def major_event_threshold(saidi: jax.Array) -> jax.Array:
    """T_MED from the daily SAIDI of the five years before, (days,) in any unit, which is the result's; ().

    It is not a number with fewer than two days that have interruptions.
    """
    some = saidi > 0
    count = jnp.sum(some)
    logs = jnp.where(some, jnp.log(jnp.where(some, saidi, 1.0)), 0.0)
    alpha = jnp.sum(logs) / jnp.maximum(count, 1)
    variance = jnp.sum(jnp.where(some, (logs - alpha) ** 2, 0.0)) / jnp.maximum(count - 1, 1)
    spread = jnp.sqrt(jnp.where(variance > 0, variance, 1.0)) * (variance > 0)
    return jnp.where(count > 1, jnp.exp(alpha + DAYS_OUT * spread), jnp.nan)


def without_days(log: Outages, days: jax.Array) -> Outages:
    """The log without the interruptions that began on the days marked, (days,) bool."""
    day = jnp.floor(log.start_h / 24).astype(jnp.int32)
    out = jnp.take(days, day, mode="fill", fill_value=False)
    return dataclasses.replace(log, minutes=jnp.where(out, 0.0, log.minutes))


def of_rollout(info: dict[str, jax.Array], customers: jax.Array, hours: float | jax.Array) -> Indices:
    """The indices of what `gridjax.env.restoration.Restoration` counts over steps.

    Args:
      info: of its steps, as (steps, ...) or (steps, batch, ...): one index over all.
      customers: (loads,) of its parameters.
      hours: of a step.

    Returns:
      Indices over the time of one environment, on the mean of a batch. Each episode begins with a fault: they are those
      of a year only after a division by how many years go by between such faults. Steps that were not solved are left
      out. CAIFI, CTAIDI, ASIFI and ASIDI are not numbers, for the counts say nothing of single customers and their
      powers; MAIFI_E is MAIFI.
    """
    total = jnp.sum(customers)
    steps = jnp.sum(jnp.isfinite(info["customer_minutes"]))
    batch = info["customer_minutes"].size / info["customer_minutes"].shape[0]
    number, momentary, minutes, ens = (
        jnp.nansum(info[k]) / batch
        for k in ("customers_interrupted", "customers_momentary", "customer_minutes", "energy_not_served_kwh")
    )
    nan = jnp.asarray(jnp.nan, number.dtype)
    return Indices(
        saifi=number / total, saidi_h=minutes / 60 / total, caidi_h=_ratio(minutes / 60, number),
        asai=1 - minutes / 60 / (total * hours * steps / batch), maifi=momentary / total, maifi_e=momentary / total,
        caifi=nan, ctaidi_h=nan, asifi=nan, asidi_h=nan, ens_kwh=ens, aens_kwh=ens / total,
    )  # fmt: skip


@flax.struct.dataclass
class Radial:
    """A radial feeder in sections, each with what stands at its upstream end; a section's number is above its parent's.

    Attributes:
      parent: (sections,) the section upstream, -1 where the source is.
      rate: (sections,) faults a year.
      repair_h: (sections,) mean time to repair one.
      protective: (sections,) whether its head has a breaker, recloser or fuse, which trips on faults beyond it.
      switch: (sections,) whether its head has a switch that can isolate it (a protective device can, too).
      tie: (sections,) whether it can be fed from elsewhere once a fault upstream is isolated.
      customers: (sections,).
      kw: (sections,) mean power.
      switching_h: () time to isolate and to switch over.
    """

    parent: jax.Array
    rate: jax.Array
    repair_h: jax.Array
    protective: jax.Array
    switch: jax.Array
    tie: jax.Array
    customers: jax.Array
    kw: jax.Array
    switching_h: jax.Array


def expected(feeder: Radial) -> tuple[Indices, jax.Array, jax.Array]:
    """What to expect in a year.

    Faults upstream of all protective devices interrupt nobody, as in OpenDSS; give the first section one.

    Returns:
      The indices, and each section's interruptions and hours without supply a year, (sections,) each.
    """
    above = _ancestors(feeder.parent)  # [s, a]: a is s or upstream of it
    isolates = feeder.protective | feeder.switch
    guard = _nearest(above, feeder.protective)
    block = _nearest(above, isolates)  # the head of what no device parts, -1 at the source
    # Whose block's head is at or beyond which section; the source's own block is upstream of everything.
    out = jnp.where(guard[:, None] >= 0, above[:, jnp.maximum(guard, 0)].T, False)  # [fault, section]: interrupted
    same = block[:, None] == block[None, :]
    beyond = jnp.where(block[:, None] >= 0, above[:, jnp.maximum(block, 0)].T, True) & ~same  # [fault, section]
    fed = beyond & _fed_elsewhere(above, block, feeder.tie)
    wait = same | (beyond & ~fed)
    hours = jnp.where(wait, feeder.repair_h[:, None], jnp.minimum(feeder.switching_h, feeder.repair_h)[:, None])
    often = jnp.sum(jnp.where(out, feeder.rate[:, None], 0.0), axis=0)
    long = jnp.sum(jnp.where(out, feeder.rate[:, None] * hours, 0.0), axis=0)
    return _of_points(often, long, feeder.customers, feeder.kw), often, long


def _of_points(often: jax.Array, long: jax.Array, customers: jax.Array, kw: jax.Array) -> Indices:
    total, total_kw = jnp.sum(customers), jnp.sum(kw)
    saifi, saidi = jnp.sum(often * customers) / total, jnp.sum(long * customers) / total
    ens, none = jnp.sum(long * kw), jnp.zeros_like(saifi)
    return Indices(
        saifi=saifi, saidi_h=saidi, caidi_h=_ratio(saidi, saifi), asai=1 - saidi / 8760, maifi=none, maifi_e=none,
        caifi=none * jnp.nan, ctaidi_h=none * jnp.nan, asifi=_ratio(jnp.sum(often * kw), total_kw),
        asidi_h=_ratio(ens, total_kw), ens_kwh=ens, aens_kwh=ens / total,
    )  # fmt: skip


def _ancestors(parent: jax.Array) -> jax.Array:
    """(sections, sections): whether the second is the first or upstream of it."""
    n = parent.shape[0]
    own = jnp.eye(n, dtype=bool)

    def add(s, above):
        inherited = jnp.where(parent[s] >= 0, above[jnp.maximum(parent[s], 0)], False)
        return above.at[s].set(inherited | own[s])

    return jax.lax.fori_loop(0, n, add, jnp.zeros((n, n), bool))


def _nearest(above: jax.Array, has: jax.Array) -> jax.Array:
    """(sections,) the last of those at or upstream of each that has something; -1 where none has."""
    return jnp.max(jnp.where(above & has[None, :], jnp.arange(above.shape[0])[None, :], -1), axis=1)


def _fed_elsewhere(above: jax.Array, block: jax.Array, tie: jax.Array) -> jax.Array:
    """[fault, section]: whether a tie reaches a section downstream of the fault's block without passing that block.

    What hangs together beyond a fault's block is a child block of it with all below, in which any tie will do.
    """
    n = above.shape[0]
    head = jnp.maximum(block, 0)
    # For each fault and section: the block upstream of the section that is next to the fault's block.
    heads = above & (block == jnp.arange(n))[None, :]  # [section, head of a block at or upstream]
    inside = jnp.where(
        block[:, None] >= 0, above[:, head].T, True
    )  # [fault, candidate]: at or beyond the fault's block
    candidate = heads[None, :, :] & inside[:, None, :] & (jnp.arange(n)[None, :] != block[:, None])[:, None, :]
    first = jnp.argmax(candidate, axis=2)  # numbers grow downstream
    reached = jnp.any(above & tie[:, None], axis=0)  # [head]: whether a tie is at or beyond it
    return reached[first] & jnp.any(candidate, axis=2)
