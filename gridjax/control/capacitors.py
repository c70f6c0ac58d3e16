r"""Capacitor controls: when a bank's steps go in and out.

Each control compares one measured quantity with its settings (EPRI, "OpenDSS CapControl element", 2011-2023, whose
behaviour this module has); a bank that is open closes, a bank that is closed adds a step while it has one, or opens:

    kind       quantity                              closes, adds a step           opens, takes one off
    voltage    V = |V| / PT (line to line: delta)    V < on                        V > off
    current    I = |I| / CT                          I > on                        I < off
    kvar       Q into the terminal                   Q > on                        Q < off
    pf         F = |P|/|S|, or 2 - |P|/|S| if Q < 0  F < on and Q > kvar/2         F > off
    time       h, hours of the day in (0, 24]        on <= h < off                 h >= off or h < on

For pf, kvar is the whole bank's while it is open and one step's after that, and negative settings -f mean 2 - f. If
`off` is not after `on`, a time control closes from `on` to midnight and opens from `off` to `on`. With the voltage
override a voltage above vmax opens and one below vmin closes before anything else is looked at (not of the kind
voltage, which is that already).

A switching waits for `delay` (in) or `delay_off` (out) seconds, and is taken back if its cause goes away. A bank of one
step that was opened does not close until `dead_time` has passed: its delay is then dead_time + delay since the opening.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.control.meters import Reading, Workshop
from gridjax.feeder import Capacitor, CapacitorControl, Feeder

KINDS = ("voltage", "current", "kvar", "pf", "time")
CLOSE, OPEN, STAY = 1, -1, 0


@flax.struct.dataclass
class CapacitorControls:
    """Settings of a feeder's capacitor controls, one entry each; volts and amperes as the relay sees them, seconds.

    Attributes:
      kind: number in `KINDS`.
      plus, minus: nodes across which the voltage is taken.
      amps, power: meters of the current and of the power.
      kvar: of the whole bank.
      count: steps of the bank.
      step_control, step_order: (steps,) of every capacitor step the control that moves it, one past the last if none,
        and its place in the bank.
      kinds: those that occur, and "override" if any control has it.
    """

    kind: jax.Array
    plus: jax.Array
    minus: jax.Array
    amps: jax.Array
    power: jax.Array
    pt_ratio: jax.Array
    ct_ratio: jax.Array
    on: jax.Array
    off: jax.Array
    delay: jax.Array
    delay_off: jax.Array
    dead_time: jax.Array
    override: jax.Array
    vmin: jax.Array
    vmax: jax.Array
    kvar: jax.Array
    count: jax.Array
    step_control: jax.Array
    step_order: jax.Array
    kinds: tuple[str, ...] = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Banks:
    """The controlled banks, one entry a control.

    Attributes:
      steps: in service, the first ones of the bank.
      closed: whether the bank's switch is closed.
      pending: what is asked for: 1 in, -1 out, 0 nothing.
      due: seconds until it is done, infinite if nothing is asked for.
      since_open: seconds since the bank was opened.
      operations: switchings so far.
    """

    steps: jax.Array
    closed: jax.Array
    pending: jax.Array
    due: jax.Array
    since_open: jax.Array
    operations: jax.Array


# --- Settings, on the host. ---


def capacitor_controls(feeder: Feeder, workshop: Workshop, dtype) -> CapacitorControls:
    """The settings of all capacitor controls of a feeder; puts their meters into the workshop.

    Raises:
      ValueError: settings that make no sense, with the control's name and the cure.
    """
    banks = {c.name: c for c in feeder.capacitors}
    seen: dict[str, str] = {}
    for c in feeder.capacitor_controls:
        other = seen.setdefault(c.capacitor, c.name)
        _require(other == c.name, c, f"{other!r} switches the same capacitor; leave one of them out")
    rows = [_row(c, banks[c.capacitor], workshop) for c in feeder.capacitor_controls]
    columns = {}
    for field in dataclasses.fields(CapacitorControls):
        if field.name in ("step_control", "step_order", "kinds"):
            continue
        kind = np.int32 if field.name in ("kind", "plus", "minus", "amps", "power", "count") else dtype
        kind = np.bool_ if field.name == "override" else kind
        columns[field.name] = jnp.asarray(np.array([row[field.name] for row in rows]).reshape(len(rows)).astype(kind))
    control_of = {c.capacitor: i for i, c in enumerate(feeder.capacitor_controls)}
    steps = [(control_of.get(b.name, len(rows)), k) for b in feeder.capacitors for k in range(len(b.kvar))]
    table = np.array(steps, np.int32).reshape(len(steps), 2)
    kinds = {c.kind for c in feeder.capacitor_controls}
    if any(row["override"] for row in rows):
        kinds.add("override")
    return CapacitorControls(
        **columns,
        step_control=jnp.asarray(table[:, 0]),
        step_order=jnp.asarray(table[:, 1]),
        kinds=tuple(sorted(kinds)),
    )


def _require(good: bool, c: CapacitorControl, problem: str) -> None:
    if not good:
        raise ValueError(f"capacitor control {c.name!r}: {problem}")


def _row(c: CapacitorControl, bank: Capacitor, workshop: Workshop) -> dict:
    """One control's settings under the names of `CapacitorControls`."""
    _require(c.kind in KINDS, c, f"unknown kind {c.kind!r}; choose one of {', '.join(KINDS)}")
    _require(c.pt_ratio > 0 and c.ct_ratio > 0, c, "pt_ratio and ct_ratio must be positive")
    _require(min(c.delay_s, c.delay_off_s, c.dead_time_s) >= 0, c, "delays cannot be negative")
    closed = sum(bank.closed)
    _require(all(bank.closed[:closed]), c, (
        f"of {bank.name!r} some step is in service and one before it is not; put those in service first"
    ))  # fmt: skip
    on, off = c.on, c.off
    if c.kind == "pf":
        _require(max(abs(on), abs(off)) <= 1, c, "power factors are between -1 (leading) and 1")
        on, off = (2.0 + f if f < 0 else f for f in (on, off))
    hunts = on > off if c.kind in ("voltage", "pf") else off > on
    _require(c.kind == "time" or not hunts, c, (
        f"what closes it opens it too (on={c.on:g}, off={c.off:g}); exchange on and off"
    ))  # fmt: skip
    override = c.voltage_override and c.kind != "voltage"
    _require(not override or c.vmin < c.vmax, c, "vmin must be below vmax")
    row = {
        "kind": KINDS.index(c.kind), "on": on, "off": off, "pt_ratio": c.pt_ratio, "ct_ratio": c.ct_ratio,
        "delay": c.delay_s, "delay_off": c.delay_off_s, "dead_time": c.dead_time_s, "override": override,
        "vmin": c.vmin, "vmax": c.vmax, "kvar": sum(bank.kvar), "count": len(bank.kvar),
        "plus": workshop.ground, "minus": workshop.ground, "amps": -1, "power": -1,
    }  # fmt: skip
    if c.kind == "voltage" or override:
        row["plus"], row["minus"] = _voltage_nodes(c, bank, workshop)
    if c.kind in ("current", "kvar", "pf"):
        record = workshop.find(c.element)
        _require(record is not None, c, f"cannot meter {c.element!r}; name a line, a transformer or a reactor")
        terminals = workshop.terminal_strings(record)
        _require(1 <= c.terminal <= len(terminals), c, f"{c.element!r} has no terminal {c.terminal}")
        if c.kind == "current":  # as the engine has it, of the first terminal whatever `terminal` says
            conductors = workshop.conductors(record)
            _require(1 <= c.ct_phase <= len(workshop.nodes(terminals[0])), c, f"{c.element!r} lacks its ct_phase")
            row["amps"] = workshop.meter(conductors[c.ct_phase - 1])
        else:
            row["power"] = workshop.power_meter(record, c.terminal - 1)
    return row


def _voltage_nodes(c: CapacitorControl, bank: Capacitor, workshop: Workshop) -> tuple[int, int]:
    """The nodes of the monitored terminal across which the voltage is taken."""
    kind, _, name = c.element.rpartition(".")
    tables = {"capacitor": "capacitors", "load": "loads", "generator": "generators"}
    record = workshop.find(c.element)
    if record is None and kind in tables:
        record = next((x for x in getattr(workshop.feeder, tables[kind]) if x.name == name), None)
    if record is None:
        raise ValueError(f"capacitor control {c.name!r}: cannot find {c.element!r}; name a line or a transformer")
    terminals = (record.bus,) if kind in ("load", "generator") else workshop.terminal_strings(record)
    _require(1 <= c.terminal <= len(terminals), c, f"{c.element!r} has no terminal {c.terminal}")
    nodes = workshop.nodes(terminals[c.terminal - 1])
    second = c.pt_phase % bank.phases + 1
    places = (c.pt_phase, second) if bank.connection == "delta" else (c.pt_phase,)
    _require(c.pt_phase >= 1 and max(places) <= len(nodes), c, (
        f"terminal {c.terminal} of {c.element!r} lacks conductor {max(places)}; choose another pt_phase or element"
    ))  # fmt: skip
    return nodes[c.pt_phase - 1], nodes[second - 1] if bank.connection == "delta" else workshop.ground


# --- Steps, under jit. ---


def in_service(settings: CapacitorControls, banks: Banks, capacitor: jax.Array) -> jax.Array:
    """The steps in service, (steps,): controlled ones by their banks, the others as in `capacitor`."""
    if not settings.kind.shape[0]:
        return capacitor
    steps = jnp.append(jnp.where(banks.closed, banks.steps, 0), 0)[settings.step_control]
    controlled = settings.step_control < settings.kind.shape[0]
    return jnp.where(controlled, (settings.step_order < steps).astype(capacitor.dtype), capacitor)


def as_they_are(settings: CapacitorControls, capacitor: jax.Array) -> Banks:
    """Banks at rest with the steps in service up to the last of `capacitor` (steps,); never opened before."""
    n = settings.kind.shape[0]
    last = jnp.where(capacitor > 0.5, settings.step_order + 1, 0).astype(jnp.int32)
    steps = jnp.zeros(n + 1, jnp.int32).at[settings.step_control].max(last)[:n]
    forever = jnp.full(n, jnp.inf, settings.on.dtype)
    return Banks(
        steps=steps,
        closed=steps > 0,
        pending=jnp.zeros(n, jnp.int32),
        due=forever,
        since_open=forever,
        operations=jnp.zeros(n, jnp.int32),
    )


def quantity(settings: CapacitorControls, reading: Reading, hour: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What each control compares, its voltage, and the kvar into its terminal; (controls,) each."""
    volts = _size(reading.volts[settings.plus] - reading.volts[settings.minus]) / settings.pt_ratio
    x, s = volts, reading.powers[settings.power]
    if "current" in settings.kinds:
        x = jnp.where(settings.kind == 1, _size(reading.amps[settings.amps]) / settings.ct_ratio, x)
    kvar = s.imag / 1e3
    if "kvar" in settings.kinds:
        x = jnp.where(settings.kind == 2, kvar, x)
    if "pf" in settings.kinds:
        factor = jnp.where(s == 0, 1.0, jnp.abs(s.real) / _size(jnp.where(s == 0, 1.0, s)))
        x = jnp.where(settings.kind == 3, jnp.where(s.imag < 0, 2.0 - factor, factor), x)
    if "time" in settings.kinds:
        x = jnp.where(settings.kind == 4, hour, x)
    return x, volts, kvar


def _size(z: jax.Array) -> jax.Array:
    """|z| with derivative zero at zero, where nothing is measured."""
    return jnp.where(z == 0, 0.0, jnp.abs(jnp.where(z == 0, 1.0, z)))


def hour_of_day(hour: jax.Array) -> jax.Array:
    """Hours in (0, 24]; 0 only at the very beginning."""
    return hour - 24.0 * jnp.maximum(jnp.ceil(hour / 24.0) - 1.0, 0.0)


def by_the_clock(settings: CapacitorControls, hour: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether the hour of the day calls for the bank, and whether it calls it off; (controls,) each."""
    on, off = settings.on, settings.off
    same_day = off > on
    within = (hour >= on) & (hour < jnp.where(same_day, off, 24.0))
    return within, jnp.where(same_day, (hour >= off) | (hour < on), (hour >= off) & (hour < on))


def sample(settings: CapacitorControls, now: Banks, reading: Reading, hour: jax.Array) -> Banks:
    """The controls look at what they measure: what they ask for, and which requests they make or take back."""
    if not settings.kind.shape[0]:
        return now
    x, volts, kvar = quantity(settings, reading, hour)
    on, off = settings.on, settings.off
    falling = (settings.kind == 0) | (settings.kind == 3)  # the quantity falls with load: volts and power factor
    more, less = jnp.where(falling, x < on, x > on), jnp.where(falling, x > off, x < off)
    first = more
    if "pf" in settings.kinds:
        pf = settings.kind == 3
        first = first & ~(pf & (kvar <= settings.kvar / 2))
        more = more & ~(pf & (kvar <= settings.kvar / settings.count / 2))
    if "time" in settings.kinds:
        time = settings.kind == 4
        within, without = by_the_clock(settings, hour)
        first, more, less = (jnp.where(time, t, a) for t, a in ((within, first), (within, more), (without, less)))
    room = now.steps < settings.count
    # A closed bank with room keeps what it asked for before, but for the kind voltage: so does the engine.
    idle = jnp.where(room & (settings.kind != 0), now.pending, STAY)
    closed = jnp.where(less, OPEN, jnp.where(room & more, CLOSE, idle))
    pending = jnp.where(now.closed, closed, jnp.where(first, CLOSE, STAY))
    asks = jnp.where(now.closed, less | (room & more), first)
    if "override" in settings.kinds:
        low, high = ~now.closed & (volts < settings.vmin), now.closed & (volts > settings.vmax)
        pending = jnp.where(settings.override & low, CLOSE, jnp.where(settings.override & high, OPEN, pending))
        asks = asks | (settings.override & (low | high))
    wait = settings.dead_time + settings.delay - jnp.minimum(now.since_open, settings.dead_time)
    dead = now.since_open < settings.dead_time
    delay_on = jnp.where(dead, jnp.maximum(settings.delay, wait), settings.delay)
    delay = jnp.where(pending == CLOSE, delay_on, settings.delay_off)
    armed = jnp.isfinite(now.due)
    due = jnp.where(asks & ~armed, delay, jnp.where(armed & (pending == STAY), jnp.inf, now.due))
    return dataclasses.replace(now, pending=pending.astype(jnp.int32), due=due)


def next_due(now: Banks) -> jax.Array:
    """Seconds until the first switching, scalar; infinite if there is none."""
    return jnp.min(now.due, initial=jnp.inf)


def act(settings: CapacitorControls, now: Banks, until: jax.Array) -> Banks:
    """All switchings due at `until` seconds."""
    fires = now.due <= until
    take, add = (fires & (now.pending == way) for way in (OPEN, CLOSE))
    take = take & now.closed
    steps = jnp.clip(now.steps + add - take, 0, settings.count.astype(jnp.int32))
    opened = take & (steps == 0)
    single = settings.count == 1
    return dataclasses.replace(
        now,
        steps=steps,
        closed=(now.closed & ~opened) | add,
        due=jnp.where(fires, jnp.inf, now.due),
        since_open=jnp.where(opened & single, 0.0, now.since_open),
        operations=now.operations + ((steps != now.steps) | (add & ~now.closed)),
    )
