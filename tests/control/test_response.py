"""Ride-through, tripping, enter service and response times against EPRI's OpenDER, step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax.control import response, ride_through, standard
from gridjax.grid import OperatingPoint
from tests.control import der

NAMES = {
    "Trip": ride_through.TRIP,
    "Entering Service": ride_through.ENTERING,
    "Continuous Operation": ride_through.CONTINUOUS,
    "Mandatory Operation": ride_through.MANDATORY,
    "Permissive Operation": ride_through.PERMISSIVE,
    "Momentary Cessation": ride_through.CESSATION,
    "Cease to Energize": ride_through.CEASE,
    "Not Defined": ride_through.UNDEFINED,
}
ENTER = standard.EnterService(delay_s=2.0, ramp_s=3.0)


def point_of(kw, kvar):
    none = jnp.zeros(0)
    return OperatingPoint(none, none, jnp.asarray(kw), jnp.asarray(kvar), none, none, none)


def theirs(rules, kvas, kws, category, v, hz, available, seconds):
    """Status, P and Q of all units at all steps, (steps, units) each."""
    units = [
        der.theirs(
            *one, category="CAT_" + category, ES_DELAY=ENTER.delay_s, ES_RAMP_RATE=ENTER.ramp_s,
            MC_ENABLE=category == "III", MC_LVRT_V1=0.5, MC_HVRT_V1=1.1, NP_CTE_RESP_T=0.0, NP_INV_DELAY=0.0,
            NP_CURRENT_PU=100.0,
        )
        for one in zip(rules, kvas, kws, strict=True)
    ]  # fmt: skip
    trip = standard.TRIP[category]
    for unit in units:
        for k, name in enumerate(("OV2", "OV1", "UV1", "UV2")):
            setattr(unit.der_file, name + "_TRIP_V", trip[2 * k])
            setattr(unit.der_file, name + "_TRIP_T", trip[2 * k + 1])
    der.DER.t_s = seconds
    out = []
    for k in range(len(v)):
        row = []
        for i, unit in enumerate(units):
            unit.update_der_input(v_pu=float(v[k, i]), p_dc_pu=float(available[k, i]), f=float(hz[k]))
            p, q = unit.run()
            row.append((NAMES[unit.der_status], p / unit.der_file.NP_P_MAX, q / unit.der_file.NP_VA_MAX))
        out.append(row)
    return np.moveaxis(np.array(out), 2, 0)


def ours(s, limits, kvas, kws, v, hz, available, seconds):
    """The same. Bus "b" has one node, so that a scenario has one voltage: each unit gets a scenario of its own."""

    def one(v, available, k):
        at = jax.tree.map(lambda a: a[None, k] if a.ndim else a, (s, limits))
        mine, bounds = jax.tree.map(lambda a: a, at)
        start = response.at_rest(mine, bounds, point_of(available[:1] * mine.rated_kw, jnp.zeros(1)), v[:1] + 0j)

        def body(state, now):
            voltage, power, f = now
            point = point_of(power[None] * mine.rated_kw, jnp.zeros(1))
            out, state = response.step(mine, bounds, state, point, voltage[None] + 0j, f, seconds)
            row = state.service.status[0], out.generation_kw[0] / mine.rated_kw[0], out.generation_kvar[0] / mine.kva[0]
            return state, (*row, state.service.required[0])

        return jax.lax.scan(body, start, (v, available, hz))[1]

    numbers = jnp.arange(s.kva.shape[0])
    s = dataclasses.replace(s, near=jnp.zeros((len(kvas), 2)))
    return jax.jit(jax.vmap(one, in_axes=(1, 1, 0), out_axes=1))(jnp.asarray(v), jnp.asarray(available), numbers)


def events(rng, steps, count, calm):
    """Voltages that jump now and then, most of the time normal."""
    v = np.empty((steps, count))
    for i in range(count):
        k = 0
        while k < steps:
            long = int(rng.integers(2, 60))
            v[k : k + long, i] = rng.uniform(0.1, 1.3) if rng.random() > calm else rng.uniform(0.93, 1.04)
            k += long
    v[:5] = 1.0
    return v


@pytest.mark.parametrize("category", ["I", "II", "III"])
def test_statuses_are_those_of_opender(category):
    rng, kvas, kws, rules, s = der.random_fleet(7, 30, "volt-var", least_power=0.0)
    steps, seconds = 400, 0.08
    v = events(rng, steps, 30, 0.6)
    hz = np.where(rng.random(steps // 20) < 0.3, rng.uniform(55.0, 63.0, steps // 20), 60.0).repeat(20)
    hz[:20] = 60.0  # its timers begin as if everything had lasted for long
    available = np.full((steps, 30), 0.9)
    other = theirs(rules, kvas, kws, category, v, hz, available, seconds)[0].astype(int)
    status = np.asarray(ours(s, ride_through.limits(s, category, ENTER), kvas, kws, v, hz, available, seconds)[0])
    same = status == other
    if category == "III":
        # OpenDER has cessation at any high voltage; the standard ceases above 1.2 pu.
        same |= (v > 1.2) & (status == ride_through.CEASE) & (other == ride_through.CESSATION)
    assert same.all(), (np.argwhere(~same)[:5], status[~same][:5], other[~same][:5])
    assert len(set(other.ravel().tolist())) >= 6


def test_powers_in_time_are_those_of_opender():
    """With a trip, a second start, and frequencies beyond the dead band; OpenDER's lags are trapezoidal."""
    changes: dict = {
        "volt_watt_curve": ((1.05, 1.09), (1.0, 0.2)),
        "volt_watt": True,
        "frequency_watt": True,
        "least_power": 0.0,
        "reduced_at_low_power": False,
    }
    _rng, kvas, kws, rules, s = der.random_fleet(11, 4, "volt-var", seconds=(2.0, 3.0, 1.0), **changes)
    steps, seconds = 700, 0.02
    k = np.arange(steps)[:, None]
    v = 1.0 + 0.08 * np.sin(k / 60 + np.arange(4)[None])
    v[60:75] = 1.25  # trips within 0.16 s
    v[75:320] = 1.0
    hz = np.where((k[:, 0] > 500) & (k[:, 0] < 600), 60.9, 60.0)
    available = np.full((steps, 4), 0.9)
    other = theirs(rules, kvas, kws, "II", v, hz, available, seconds)
    status, p, q, _ = map(
        np.asarray, ours(s, ride_through.limits(s, "II", ENTER), kvas, kws, v, hz, available, seconds)
    )
    assert (status == other[0]).all() and (status == ride_through.ENTERING).any()
    # They differ by half a step of a change: most where the frequency jumps.
    assert np.abs(p - other[1]).max() < 0.016 and np.abs(q - other[2]).max() < 0.005
    calm = (np.arange(steps) < 500) | (np.arange(steps) > 680)
    assert np.abs(p - other[1])[calm].max() < 0.005
    assert np.ptp(p) > 0.5 and np.ptp(q) > 0.3


def test_required_time_of_ride_through():
    """A trip may come after 1 s at 1.12 pu, and after 3 + 8.7 (0.8 - 0.65) s at 0.8 pu, in category II."""
    _, _kvas, _kws, _, s = der.random_fleet(1, 2, "volt-var")
    limits = ride_through.limits(s, "II")
    state, seen = ride_through.in_service(limits), []
    for _ in range(60):
        state = ride_through.watch(limits, state, jnp.array([1.0, 0.8]), jnp.array([1.12, 1.0]), 60.0, 0.1)
        seen.append(np.asarray(state.required))
    over, under = np.sum(seen, axis=0)
    assert over == 10 and under == int((3 + 8.7 * 0.15) / 0.1)


def test_a_trip_needs_its_clearing_time_and_service_its_delay():
    _, _kvas, _kws, _, s = der.random_fleet(1, 1, "volt-var")
    limits = ride_through.limits(s, "I")
    state = ride_through.in_service(limits)

    def body(state, low):
        state = ride_through.watch(limits, state, low[None], jnp.ones(1), 60.0, 0.125)
        return state, state.status[0]

    times = jax.lax.scan(body, state, jnp.where(jnp.arange(5000) < 30, 0.6, 1.0))[1].tolist()
    assert times.index(ride_through.TRIP) == 15  # 16 steps are 2 s
    assert times[31:].index(ride_through.ENTERING) == 300 * 8 - 2
    assert times.index(ride_through.CONTINUOUS, 40) - times.index(ride_through.ENTERING, 40) in range(2400, 2403)


def test_categories_are_checked():
    _, _, _, _, s = der.random_fleet(1, 2, "volt-var")
    with pytest.raises(ValueError, match="are I, II and III"):
        ride_through.limits(s, "IV")
    with pytest.raises(ValueError, match="2 of them"):
        ride_through.limits(s, ["I"])
