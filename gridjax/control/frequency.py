"""The frequency of an island: swing equation, governors, droop, and the relays that act on it.

All machines of an island move together (one frequency, that of their centre of inertia): those that turn, and
inverters that form the grid as virtual ones. With w the deviation of the frequency per unit of the nominal one, S the
ratings in kVA and powers in kW (P. Kundur, "Power System Stability and Control", 1994: swing equation 3.9, governors
and droop 11.1, load's dependence on frequency 11.1.1),

    M dw/dt = sum Pm - Pe - sum D S w,       M = sum 2 H S,
    Pm = clip(Pref - S w / R, low, high)     behind a lag T dP/dt = clip(...) - P where the governor has one,

where Pe is what the network takes of all machines together. An inverter that forms the grid by a droop with a filter of
time constant Tf on its measured power is the machine with T = 0 and 2 H = Tf / R (S. D'Arco and J. A. Suul,
"Equivalence of virtual synchronous machines and frequency-droops for converter-based microgrids", IEEE Trans. Smart
Grid 5(1), 2014). Beyond its limits the frequency goes on falling or rising, which is how such inverters keep out of
overload (W. Du, R. H. Lasseter and A. S. Khalsa, "Survivability of autonomous microgrid during overload events", IEEE
Trans. Smart Grid 10(4), 2019). So a step dP is followed by w' = -dP/M at once and, within limits, by
w = -dP / sum (S/R + D S) in the end.

Sources that follow the grid answer its frequency by IEEE 1547-2018, 6.5.2.7: beyond a dead band b,

    p = clip(wanted - rated (w -+ b) / R, low, high),        behind a lag.

A relay's timer runs while its condition holds and falls back to 0 with it.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control import standard

OPEN_LOOP = 2.302585092994046  # a lag's time to 90 % over its time constant


@flax.struct.dataclass
class Machines:
    """The units that set the frequency, (m,); the first stands at the slack.

    Attributes:
      kva: S, rating.
      kw_low, kw_high: limits of the primary power.
      inertia_s: H, at S.
      droop: R, per unit of frequency for one per unit of S.
      governor_s: T; 0 has no lag.
      damping: D, per unit of S for one per unit of frequency.
    """

    kva: jax.Array
    kw_low: jax.Array
    kw_high: jax.Array
    inertia_s: jax.Array
    droop: jax.Array
    governor_s: jax.Array
    damping: jax.Array


@flax.struct.dataclass
class Swing:
    """w, (), and what the governors' lags hold, kW (m,)."""

    w: jax.Array
    governor_kw: jax.Array


@flax.struct.dataclass
class SwingBooks:
    """What a while of swinging came to.

    `M (w after - w before) = sum mechanical_kws - Pe seconds - damped_kws`, to rounding.

    Attributes:
      mechanical_kws: (m,) energy of the primary powers, kW s.
      damped_kws: () energy of the damping.
      lowest, highest: () w on the way.
      slope: () mean dw/dt.
    """

    mechanical_kws: jax.Array
    damped_kws: jax.Array
    lowest: jax.Array
    highest: jax.Array
    slope: jax.Array


@flax.struct.dataclass
class Followers:
    """Sources that follow the grid and answer its frequency, (n,): rated kW, droop, dead band (pu), time constant."""

    kw_rated: jax.Array
    droop: jax.Array
    dead_band: jax.Array
    response_s: jax.Array


@flax.struct.dataclass
class Relay:
    """Under-frequency load shedding: blocks (k,) fall at deviations `below` (pu, negative) that last `delay_s` ()."""

    below: jax.Array
    delay_s: jax.Array


@flax.struct.dataclass
class RelayState:
    """For how long each threshold has been passed, s, and which blocks have fallen, (k,)."""

    below_s: jax.Array
    fallen: jax.Array


def followers(kw_rated: jax.Array, hz: float, *, droop=standard.DROOP, response_s=standard.DROOP_SECONDS) -> Followers:
    """Sources with the dead band of IEEE 1547-2018, and its droop and open-loop response time where none are given."""

    def everywhere(value):
        return jnp.full(kw_rated.shape, value, kw_rated.dtype)

    return Followers(
        kw_rated, everywhere(droop), everywhere(standard.DEAD_BAND_HZ / hz), everywhere(response_s / OPEN_LOOP)
    )


def inertia(machines: Machines, on: jax.Array) -> jax.Array:
    """2 H S of each machine in service, kW s, (m,); M is their sum."""
    return on * 2 * machines.inertia_s * machines.kva


def governed(machines: Machines, reference_kw: jax.Array, w: jax.Array) -> jax.Array:
    """What governors ask for at a deviation, kW (m,)."""
    wanted = reference_kw - w * machines.kva / machines.droop
    return jnp.clip(wanted, machines.kw_low, machines.kw_high)


def mechanical(machines: Machines, on: jax.Array, reference_kw: jax.Array, state: Swing) -> jax.Array:
    """Primary powers Pm, kW (m,)."""
    return on * jnp.where(machines.governor_s > 0, state.governor_kw, governed(machines, reference_kw, state.w))


def swing(
    machines: Machines,
    on: jax.Array,
    reference_kw: jax.Array,
    state: Swing,
    demand_kw: jax.Array,
    seconds: jax.Array,
    steps: int = 5,
) -> tuple[Swing, SwingBooks]:
    """Goes on for some seconds while the network takes a constant power, by Runge and Kutta's classical method.

    Args:
      machines: of which the first is in service.
      on: (m,) 1.0 in service, 0.0 out.
      reference_kw: (m,) Pref.
      state: at the beginning.
      demand_kw: () Pe.
      seconds: () for how long.
      steps: of the method in this time, static; each must be shorter than the fastest time constant, of which
        `fastest_s` tells.

    Returns:
      The state at the end and the books.

    Guarantees:
      The books balance to rounding, since the method keeps what is linear in the state. Differentiable but where a
      governor just meets a limit.
    """
    each, weight = inertia(machines, on), jnp.sum(inertia(machines, on))
    lag = machines.governor_s > 0
    t = jnp.where(lag, machines.governor_s, 1.0)

    def slope(at):
        w, held, *_ = at
        power = mechanical(machines, on, reference_kw, Swing(w, held))
        damped = jnp.sum(on * machines.damping * machines.kva) * w
        falls = (jnp.sum(power) - demand_kw - damped) / weight
        moves = jnp.where(lag, (governed(machines, reference_kw, w) - held) / t, 0.0)
        return falls, moves, power, damped

    def step(at, _):
        h = seconds / steps

        def ahead(k, share):
            return tuple(a + share * h * b for a, b in zip(at, k, strict=True))

        k1 = slope(at)
        k2 = slope(ahead(k1, 0.5))
        k3 = slope(ahead(k2, 0.5))
        k4 = slope(ahead(k3, 1.0))
        after = tuple(a + h * (b + 2 * c + 2 * d + e) / 6 for a, b, c, d, e in zip(at, k1, k2, k3, k4, strict=True))
        return after, after[0]

    start = state.w, state.governor_kw, jnp.zeros_like(each), jnp.zeros_like(state.w)
    (w, held, energy, damped), seen = jax.lax.scan(step, start, None, steps)
    seen = jnp.append(seen, state.w)
    return Swing(w, held), SwingBooks(energy, damped, jnp.min(seen), jnp.max(seen), (w - state.w) / seconds)


def fastest_s(machines: Machines) -> jax.Array:
    """The shortest time constant with all machines in service, (): that of a lag, or of droop without lag on M."""
    weight = jnp.sum(inertia(machines, jnp.ones_like(machines.kva)))
    rigid = jnp.where(machines.governor_s > 0, 0.0, machines.kva / machines.droop)
    stiff = jnp.sum(rigid + machines.damping * machines.kva)
    lags = jnp.min(jnp.where(machines.governor_s > 0, machines.governor_s, jnp.inf))
    return jnp.minimum(lags, jnp.where(stiff > 0, weight / jnp.where(stiff > 0, stiff, 1.0), jnp.inf))


def follow(
    f: Followers,
    kw: jax.Array,
    wanted_kw: jax.Array,
    limits_kw: tuple[jax.Array, jax.Array],
    w: jax.Array,
    seconds: jax.Array,
) -> jax.Array:
    """What followers give after some seconds at a deviation w, kW (n,); what they have no source for falls at once.

    Args:
      f: the sources.
      kw: (n,) what they give now.
      wanted_kw: (n,) at nominal frequency.
      limits_kw: (n,) lowest and highest.
      w: () deviation, constant over the time.
      seconds: () for how long.
    """
    beyond = jnp.maximum(w - f.dead_band, 0.0) - jnp.maximum(-w - f.dead_band, 0.0)
    target = jnp.clip(wanted_kw - f.kw_rated * beyond / f.droop, *limits_kw)
    share = -jnp.expm1(-seconds / f.response_s)
    return jnp.clip(kw + share * (target - kw), *limits_kw)


def timer(before_s: jax.Array, condition: jax.Array, seconds: jax.Array) -> jax.Array:
    """For how long a condition has held."""
    return jnp.where(condition, before_s + seconds, 0.0)


def shed(relay: Relay, state: RelayState, w: jax.Array, seconds: jax.Array) -> RelayState:
    """The relay after some seconds at a deviation; blocks that fell stay off."""
    below = timer(state.below_s, w < relay.below, seconds)
    return RelayState(below, state.fallen | (below >= relay.delay_s))
