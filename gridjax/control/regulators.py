r"""Voltage regulators: when the relay asks for taps, and how the tap changer follows.

The relay sees, on the secondary of its potential transformer, through the line-drop compensator and with the current I
into the regulated winding (a load's current counts negative there),

    U = |V / PT + (R + j X) I / CT|,

V being the voltage of one phase of the winding, or that of a remote bus (then without compensation). It asks for taps
when `|vreg - U| > band / 2`, or when the local voltage is above the voltage limit:

    n = round((vreg - U) PT / V_rated / dt),      dt = (tap_max - tap_min) / taps,

halves to even. While power flows backwards through a reversible regulator it asks with the reverse settings, of the
voltage U / tap, and in the other direction; with reverse neutral it goes to neutral and stays there (EPRI, "OpenDSS
RegControl element", 2011-2023, whose behaviour this module has).

The tap changer waits for `delay` seconds (inverse time: divided by `min(10, 2 |vreg - U| / band)`), then
- static: moves `trunc(0.7 |n|)` taps at once, at least one, at most `max_tap_change`;
- timed: moves one tap, and the next after `tap_delay` seconds.

Requests stand in a queue. One that came from the delay is taken back when the voltage returns to the band; one for a
further tap is not, but does nothing when it is due and no tap is asked for. If by then the voltage has left the band
again it does act, before the delay is over: as in OpenDSS, hence several requests a regulator.
"""

from __future__ import annotations

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.control.meters import Reading, Workshop
from gridjax.description import describe
from gridjax.feeder import Feeder, Regulator, Transformer

QUEUE = 4  # requests of one regulator at a time; more than three have not been seen
NO_SLOT = -1


@flax.struct.dataclass
class Regulators:
    """Settings of a feeder's regulators, one entry each; volts on the relay's side, seconds, and as named.

    Attributes:
      plus, minus: nodes across which the relay's voltage is taken.
      limit_plus, limit_minus: those of the local voltage that is limited.
      amps: the meter of the current of the compensator.
      power: the meter of the power into the winding.
      rated_volts: of the winding's phase.
      step: of the turns ratio.
      lowest, highest: positions.
      jump: (regulators, requests + 1) taps moved at once in static mode by the taps asked for.
      enabled: False where `max_tap_change` is 0.
      compensated, limited, reversing: whether any regulator does that.
    """

    plus: jax.Array
    minus: jax.Array
    limit_plus: jax.Array
    limit_minus: jax.Array
    amps: jax.Array
    power: jax.Array
    pt_ratio: jax.Array
    ct_a: jax.Array
    rated_volts: jax.Array
    step: jax.Array
    lowest: jax.Array
    highest: jax.Array
    jump: jax.Array
    enabled: jax.Array
    vreg: jax.Array
    band: jax.Array
    r: jax.Array
    x: jax.Array
    delay: jax.Array
    tap_delay: jax.Array
    inverse_time: jax.Array
    voltage_limit: jax.Array
    reversible: jax.Array
    reverse_vreg: jax.Array
    reverse_band: jax.Array
    reverse_r: jax.Array
    reverse_x: jax.Array
    reverse_delay: jax.Array
    reverse_watts: jax.Array
    reverse_neutral: jax.Array
    compensated: bool = flax.struct.field(pytree_node=False)
    limited: bool = flax.struct.field(pytree_node=False)
    reversing: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class TapChangers:
    """Where the tap changers are, (regulators,) each but for `due` (regulators, requests).

    Attributes:
      position: tap, 0 at neutral, positive raises.
      pending: taps asked for.
      armed: whether a request counts as pending.
      due: seconds until each request acts, infinite where there is none.
      held: the request that is taken back when the voltage returns to the band, -1 if none.
      reversed: whether the relay looks backwards.
      turn_due: seconds until it turns round, infinite if it will not.
      moves: taps moved so far, in either direction.
    """

    position: jax.Array
    pending: jax.Array
    armed: jax.Array
    due: jax.Array
    held: jax.Array
    reversed: jax.Array
    turn_due: jax.Array
    moves: jax.Array


# --- Settings, on the host. ---


def regulators(feeder: Feeder, workshop: Workshop, dtype) -> Regulators:
    """The settings of all regulators of a feeder; puts their meters into the workshop.

    Raises:
      ValueError: settings that make no sense, with the regulator's name and the cure.
    """
    units = {t.name: t for t in feeder.transformers}
    seen: dict[tuple[str, int], str] = {}
    for r in feeder.regulators:
        other = seen.setdefault((r.transformer, r.winding), r.name)
        if other != r.name:
            raise ValueError(f"regulator {r.name!r}: {other!r} moves the same winding; leave one of them out")
    rows = [_row(feeder, r, units[r.transformer], workshop) for r in feeder.regulators]
    width = max((len(row["jump"]) for row in rows), default=1)
    for row in rows:
        row["jump"] = np.pad(row["jump"], (0, width - len(row["jump"])), mode="edge")
    whole = ("plus", "minus", "limit_plus", "limit_minus", "amps", "power", "lowest", "highest", "jump")
    columns = {}
    for name in (field.name for field in dataclasses.fields(Regulators)):
        if name in ("compensated", "limited", "reversing"):
            continue
        kind = bool if name in ("enabled", "inverse_time", "reversible", "reverse_neutral") else dtype
        kind = np.int32 if name in whole else kind
        shape = (len(rows), width) if name == "jump" else (len(rows),)
        columns[name] = jnp.asarray(np.array([row[name] for row in rows]).reshape(shape).astype(kind))
    return Regulators(
        **columns,
        compensated=any(row["compensated"] for row in rows),
        limited=any(r.voltage_limit > 0 for r in feeder.regulators),
        reversing=any(row["reversible"] for row in rows),
    )


def _require(good: bool, r: Regulator, problem: str) -> None:
    if not good:
        raise ValueError(f"regulator {r.name!r}: {problem}")


def _row(feeder: Feeder, r: Regulator, unit: Transformer, workshop: Workshop) -> dict:
    """One regulator's settings under the names of `Regulators`."""
    winding, w = unit.windings[r.winding - 1], r.winding - 1
    _require(winding.num_taps > 0, r, "its winding has no taps; give it num_taps > 0 or leave the regulator out")
    step = (winding.max_tap - winding.min_tap) / winding.num_taps
    lowest, highest = ((t - 1.0) / step for t in (winding.min_tap, winding.max_tap))
    whole = all(abs(p - round(p)) < 1e-6 for p in (lowest, highest))
    _require(step > 0 and whole and lowest <= 0 <= highest, r, (
        f"neutral is not among the {winding.num_taps} steps from {winding.min_tap} to {winding.max_tap}; choose "
        "min_tap, max_tap and num_taps so that 1.0 is a tap"
    ))  # fmt: skip
    _require(r.pt_ratio > 0 and r.ct_primary_a > 0, r, "pt_ratio and ct_primary_a must be positive")
    _require(r.band > 0, r, f"the band must be positive, not {r.band}")
    rated = winding.kv * 1e3 / (math.sqrt(3) if winding.connection == "wye" and unit.phases > 1 else 1.0)
    _require(min(r.delay_s, r.tap_delay_s, r.reverse_delay_s) >= 0, r, "delays cannot be negative")
    _require(1 <= r.pt_phase <= unit.phases, r, f"pt_phase must be 1 to {unit.phases}, not {r.pt_phase}")
    static = describe(feeder, unit).static
    plus, minus = _winding_nodes(workshop, unit, static, w, r.pt_phase)
    local = _winding_nodes(workshop, unit, static, w, 1) if r.monitored_bus else (plus, minus)
    if r.monitored_bus:
        plus, minus = _remote_nodes(r, unit, static, w, workshop)
    row = {
        "plus": plus, "minus": minus, "limit_plus": local[0], "limit_minus": local[1],
        "pt_ratio": r.pt_ratio, "ct_a": r.ct_primary_a, "step": step, "rated_volts": rated,
        "lowest": round(lowest), "highest": round(highest), "jump": _jumps(step, winding.num_taps, r.max_tap_change),
        "enabled": r.max_tap_change > 0, "vreg": r.vreg, "band": r.band, "r": r.r, "x": r.x,
        "delay": r.delay_s, "tap_delay": r.tap_delay_s, "inverse_time": r.inverse_time,
        "voltage_limit": r.voltage_limit if r.voltage_limit > 0 else np.inf,
        "compensated": not r.monitored_bus and bool(r.r or r.x), "amps": -1, "power": -1,
        "reversible": r.reversible and not r.monitored_bus,
        "reverse_vreg": r.reverse_vreg, "reverse_band": r.reverse_band,
        "reverse_r": r.reverse_r, "reverse_x": r.reverse_x,
        "reverse_delay": r.reverse_delay_s, "reverse_watts": 1e3 * r.reverse_threshold_kw,
        "reverse_neutral": r.reverse_neutral,
    }  # fmt: skip
    if row["compensated"]:
        before = sum(len(workshop.nodes(v.bus)) for v in unit.windings[:w])
        row["amps"] = workshop.meter(workshop.conductors(unit)[before + r.pt_phase - 1])
    else:
        row |= {"r": 0.0, "x": 0.0, "reverse_r": 0.0, "reverse_x": 0.0}
    if row["reversible"]:
        row["power"] = workshop.power_meter(unit, w)
    return row


def _jumps(step: float, taps: int, most: int) -> np.ndarray:
    """Taps moved in static mode by taps asked for; in this order of operations, since `0.7 n` may be a whole number."""
    asked = np.arange(math.ceil(taps / 0.7) + 2)
    return np.minimum(np.maximum(np.trunc(0.7 * (asked * step) / step).astype(int), 1), max(most, 0))


def _winding_nodes(workshop: Workshop, unit: Transformer, static: tuple, w: int, phase: int) -> tuple[int, int]:
    """Both nodes of a winding's phase, counted from 1."""
    nodes, winding = workshop.nodes(unit.windings[w].bus), unit.windings[w]
    if winding.connection == "wye" or unit.phases == 1:
        return nodes[phase - 1], nodes[-1]
    return nodes[phase - 1], nodes[(phase - 1 + static[3]) % 3]


def _remote_nodes(r: Regulator, unit: Transformer, static: tuple, w: int, workshop: Workshop) -> tuple[int, int]:
    """Where the voltage of the monitored bus is taken."""
    assert r.monitored_bus is not None
    bus, _, nodes = r.monitored_bus.partition(".")
    numbers = [int(n) for n in nodes.split(".")] if nodes else [1]
    names = [f"{bus}.{n}" for n in numbers if n]
    missing = [name for name in names if name not in workshop.numbers]
    _require(not missing, r, f"monitored_bus {r.monitored_bus!r} has no node {', '.join(missing)}; correct it")
    _require(r.pt_phase == 1, r, "with a monitored_bus, name its node there ('671.2') and leave pt_phase at 1")
    places = [workshop.numbers[f"{bus}.{n}"] if n else workshop.ground for n in (*numbers, 0)]
    if unit.windings[w].connection == "wye":
        return places[0], workshop.ground
    _require(static[3] == 1, r, "a winding in leading delta cannot watch a remote bus; take monitored_bus out")
    return places[0], places[1]


# --- Steps, under jit. ---


def ratios(settings: Regulators, position: jax.Array) -> jax.Array:
    """Turns ratio at a position, whole or not, (regulators,)."""
    return 1.0 + position * settings.step


def at_position(settings: Regulators, tap: jax.Array) -> TapChangers:
    """Tap changers at rest at the positions nearest to the ratios `tap` (regulators,)."""
    n = tap.shape[0]
    position = jnp.clip(jnp.round((tap - 1.0) / settings.step).astype(jnp.int32), settings.lowest, settings.highest)
    never = jnp.full(n, jnp.inf, settings.step.dtype)
    return TapChangers(
        position=position,
        pending=jnp.zeros(n, jnp.int32),
        armed=jnp.zeros(n, bool),
        due=jnp.tile(never[:, None], (1, QUEUE)),
        held=jnp.full(n, NO_SLOT, jnp.int32),
        reversed=jnp.zeros(n, bool),
        turn_due=never,
        moves=jnp.zeros(n, jnp.int32),
    )


def relay_volts(
    settings: Regulators, reading: Reading, tap: jax.Array, backwards: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What the relays see, U and the local voltage that is limited, (regulators,) volts on the relay's side.

    Args:
      settings: of the regulators.
      reading: of the meters.
      tap: (regulators,) turns ratios.
      backwards: (regulators,) which relays look backwards; None: none of them.
    """
    v = (reading.volts[settings.plus] - reading.volts[settings.minus]) / settings.pt_ratio
    local = v
    if settings.compensated:
        z = jax.lax.complex(settings.r, settings.x)
        if backwards is not None:
            z = jnp.where(backwards, jax.lax.complex(settings.reverse_r, settings.reverse_x), z)
        v = v + z * reading.amps[settings.amps] / settings.ct_a
    if settings.limited:
        local = (reading.volts[settings.limit_plus] - reading.volts[settings.limit_minus]) / settings.pt_ratio
    u = jnp.abs(v)
    return u if backwards is None else jnp.where(backwards, u / tap, u), jnp.abs(local)


def sample(settings: Regulators, now: TapChangers, reading: Reading) -> TapChangers:
    """The relays look at the voltages: what they ask for, and which requests they make or take back."""
    if not settings.step.shape[0]:
        return now
    backwards = None
    frozen = ~settings.enabled
    if settings.reversing:
        now = _watch_direction(settings, now, reading)
        backwards = now.reversed
        to_neutral = now.reversed & settings.reverse_neutral & settings.enabled
        ask = to_neutral & ~now.armed
        pending = jnp.where(ask, -now.position, now.pending)
        now = _push(dataclasses.replace(now, pending=pending), ask & (pending != 0), settings.tap_delay, held=False)
        frozen = frozen | to_neutral
    u, local = relay_volts(settings, reading, ratios(settings, now.position), backwards)
    vreg, band = settings.vreg, settings.band
    if backwards is not None:
        vreg = jnp.where(backwards, settings.reverse_vreg, vreg)
        band = jnp.where(backwards, settings.reverse_band, band)
    need, boost = jnp.abs(vreg - u) > band / 2, vreg - u
    if settings.limited:
        above = local > settings.voltage_limit
        need, boost = need | above, jnp.where(above, settings.voltage_limit - local, boost)
    # The taps asked for beyond the range make no difference, but must fit into an integer.
    asked = jnp.round(boost * settings.pt_ratio / settings.rated_volts / settings.step)
    asked = jnp.clip(asked, -1e6, 1e6).astype(jnp.int32)
    if backwards is not None:
        asked = jnp.where(backwards, -asked, asked)
    return _ask(settings, now, need & ~frozen, asked, frozen, u)


def _ask(
    settings: Regulators, now: TapChangers, need: jax.Array, asked: jax.Array, frozen: jax.Array, u: jax.Array
) -> TapChangers:
    """Requests by what is asked for; `frozen` regulators keep what they have."""
    back = ~need & now.armed & ~frozen
    gone = back[:, None] & (jnp.arange(QUEUE)[None] == now.held[:, None])
    pending = jnp.where(need, asked, 0)
    now = dataclasses.replace(
        now,
        pending=jnp.where(frozen, jnp.where(settings.enabled, now.pending, 0), pending),
        armed=now.armed & ~back,
        due=jnp.where(gone, jnp.inf, now.due),
        held=jnp.where(back, NO_SLOT, now.held),
    )
    room = jnp.where(asked > 0, now.position < settings.highest, now.position > settings.lowest)
    excess = 2.0 * jnp.abs(settings.vreg - u) / settings.band
    haste = jnp.clip(excess, jnp.finfo(u.dtype).tiny, 10.0)
    delay = jnp.where(settings.inverse_time, settings.delay / haste, settings.delay)
    return _push(now, need & (asked != 0) & room & ~now.armed, delay, held=True)


def _watch_direction(settings: Regulators, now: TapChangers, reading: Reading) -> TapChangers:
    """Starts the clock of turning round while power flows against the way that a relay looks, and stops it else."""
    forward = -reading.powers[settings.power].real
    against = jnp.where(now.reversed, forward > settings.reverse_watts, forward < -settings.reverse_watts)
    against = against & settings.reversible & settings.enabled
    turn_due = jnp.where(against, jnp.where(jnp.isfinite(now.turn_due), now.turn_due, settings.reverse_delay), jnp.inf)
    return dataclasses.replace(now, turn_due=turn_due)


def _push(now: TapChangers, which: jax.Array, delay: jax.Array, held: bool) -> TapChangers:
    """A new request of `which` regulators; without a free place it takes that of the latest."""
    slot = jnp.argmax(now.due, axis=1)
    new = which[:, None] & (jnp.arange(QUEUE)[None] == slot[:, None])
    return dataclasses.replace(
        now,
        due=jnp.where(new, delay[:, None], now.due),
        held=jnp.where(which & held, slot.astype(jnp.int32), now.held),
        armed=now.armed | which,
    )


def next_due(now: TapChangers) -> jax.Array:
    """Seconds until the first request acts, scalar; infinite if there is none."""
    if not now.position.shape[0]:
        return jnp.asarray(jnp.inf, now.due.dtype)
    return jnp.minimum(jnp.min(now.due), jnp.min(now.turn_due))


def act(settings: Regulators, now: TapChangers, until: jax.Array, timed: bool) -> TapChangers:
    """All requests due at `until` seconds act; `timed`: tap by tap, else in static mode's jumps."""
    if not settings.step.shape[0]:
        return now
    fires = now.due <= until
    count = jnp.sum(fires, axis=1, dtype=jnp.int32)
    asked = jnp.abs(now.pending)
    if timed:
        at_once = settings.tap_delay <= 0
        taps = jnp.where(count > 0, jnp.where(at_once, asked, jnp.minimum(count, asked)), 0)
        left = asked - taps
        # Each tap but the last that was asked for makes a request for the next one.
        further = jnp.where(at_once, 0, jnp.where(left > 0, taps, jnp.maximum(taps - 1, 0)))
    else:
        last = settings.jump.shape[1] - 1
        taps = jnp.take_along_axis(settings.jump, jnp.minimum(asked, last)[:, None], axis=1)[:, 0]
        taps = jnp.where((count > 0) & (asked > 0), taps, 0)
        left = jnp.where(count > 0, 0, asked)
        further = jnp.zeros_like(count)
    up = jnp.sign(now.pending)
    position = jnp.clip(now.position + up * taps, settings.lowest, settings.highest)
    again = fires & (jnp.cumsum(fires, axis=1) <= further[:, None])
    due = jnp.where(again, settings.tap_delay[:, None], jnp.where(fires, jnp.inf, now.due))
    held = jnp.any(fires & (jnp.arange(QUEUE)[None] == now.held[:, None]), axis=1)
    turns = now.turn_due <= until
    return dataclasses.replace(
        now,
        position=position,
        pending=up * left,
        armed=now.armed & ~((count > 0) & (left == 0)),
        due=due,
        held=jnp.where(held, NO_SLOT, now.held),
        reversed=now.reversed ^ turns,
        turn_due=jnp.where(turns, jnp.inf, now.turn_due),
        moves=now.moves + jnp.abs(position - now.position),
    )
