"""Irradiance and temperature to power: as on the host, which is checked against OpenDSS, with cut-in and cut-out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import gridjax
from gridjax.control.photovoltaic import available, panels, with_available
from gridjax.feeder import PVSystem
from gridjax.generation import pv_power
from tests.feeders_for_tests import two_bus_feeder

EFFICIENCY = ((0.1, 0.2, 0.4, 1.0), (0.86, 0.9, 0.93, 0.97))
TEMPERATURE = ((0.0, 25.0, 75.0), (1.2, 1.0, 0.8))


def random_systems(rng, count):
    systems = []
    for i in range(count):
        kva = float(rng.uniform(10, 500))
        systems.append(
            PVSystem(
                f"pv{i}", "b.1.2.3.0", 3, "wye", 4.16, kva=kva, pmpp_kw=kva * float(rng.uniform(0.6, 1.6)),
                power_curve=TEMPERATURE if rng.random() < 0.6 else ((25.0,), (0.9,)) if rng.random() < 0.5 else None,
                efficiency_curve=EFFICIENCY if rng.random() < 0.7 else None,
                pmpp_percent=float(rng.uniform(70, 100)), cut_out_percent=float(rng.uniform(2, 20)), watt_priority=True,
            )
        )  # fmt: skip
    return systems


def test_power_is_that_of_the_host_over_random_systems_and_weather():
    rng = np.random.default_rng(0)
    systems = random_systems(rng, 40)
    feeder = two_bus_feeder().replace(pv_systems=tuple(systems))
    grid, p = gridjax.compile(feeder), panels(feeder)
    sun, warm = rng.uniform(0.0, 1.1, (5, 40)), rng.uniform(-20, 90, (5, 40))
    kw, on = jax.jit(jax.vmap(available, in_axes=(None, 0, 0)))(p, jnp.asarray(sun), jnp.asarray(warm))
    kw = jnp.minimum(kw, p.kva[None])  # active power goes first
    for k in range(5):
        mine = with_available(p, grid.nominal, kw[k]).generation_kw
        records = [
            dataclasses.replace(pv, irradiance=float(g), temperature_c=float(t))
            for pv, g, t in zip(systems, sun[k], warm[k], strict=True)
        ]
        np.testing.assert_allclose(mine, [pv_power(pv)[0] for pv in records], rtol=1e-12, atol=1e-12)
    assert 0.05 < float(on.mean()) < 1.0


def test_an_inverter_goes_on_at_the_cut_in_and_off_at_the_cut_out():
    pv = PVSystem("a", "b.1.2.3.0", 3, "wye", 4.16, 100.0, 100.0, cut_in_percent=20.0, cut_out_percent=5.0)
    p = panels(two_bus_feeder().replace(pv_systems=(pv,)))
    on, seen = jnp.array([False]), []
    for sun in (0.03, 0.1, 0.19, 0.21, 0.1, 0.06, 0.04, 0.1, 0.3):
        kw, on = available(p, sun, on=on)
        seen.append((bool(on[0]), round(float(kw[0]), 9)))
    assert [state for state, _ in seen] == [False, False, False, True, True, True, False, False, True]
    assert [kw for _, kw in seen] == [0, 0, 0, 21, 10, 6, 0, 0, 30]


def test_derivatives_by_the_weather():
    p = panels(two_bus_feeder().replace(pv_systems=tuple(random_systems(np.random.default_rng(1), 20))))
    at, h = (jnp.full(20, 0.63), jnp.full(20, 33.0)), 1e-6
    for k in range(2):
        d = tuple(jnp.ones(20) if i == k else jnp.zeros(20) for i in range(2))
        slope = jax.jvp(lambda *x: available(p, *x)[0], at, d)[1]
        ahead, behind = (available(p, *(a + s * h * b for a, b in zip(at, d, strict=True)))[0] for s in (1, -1))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)
