"""Continuous taps and capacitor shares: what they hold, and their derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from switching_cases import switchyard

import gridjax
from gridjax.control.continuous import GAP, settle_continuously
from gridjax.control.meters import read
from gridjax.control.regulators import relay_volts
from gridjax.control.switching import switching


def tight(grid, point):
    return point, gridjax.solve(grid, point, tol=1e-12)


def test_taps_stay_within_the_band_or_hold_its_edge():
    feeder = gridjax.feeders.ieee34_mod2()
    grid = gridjax.compile(feeder)
    controls = switching(feeder, grid)
    cold = dataclasses.replace(grid.nominal, tap=jnp.ones(6))
    cold = dataclasses.replace(cold, tap=cold.tap.at[1].set(1.03))
    point, flow, gap = jax.jit(lambda p: settle_continuously(grid, p, controls, tight, softness=0.1))(cold)
    assert gap <= GAP
    u, _ = relay_volts(controls.regulators, read(controls.meters, grid, point, flow), point.tap)
    regulators = controls.regulators
    assert np.all(np.abs(u - regulators.vreg) <= regulators.band / 2 + 1e-6)
    moved = np.abs(np.asarray(point.tap - cold.tap)) > 0.5 * np.asarray(regulators.step)
    np.testing.assert_allclose(np.abs(u - regulators.vreg)[moved], np.asarray(regulators.band / 2)[moved], atol=1e-3)
    assert moved.sum() >= 4 and not moved.all()


def test_derivatives_are_those_of_the_fixed_point():
    feeder = switchyard()
    grid = gridjax.compile(feeder)
    controls = switching(feeder, grid)
    start = dataclasses.replace(grid.nominal, tap=jnp.ones(5))

    def outcome(x):
        """Losses and a voltage, against load, a set-point, a setting of a capacitor control, and softness."""
        load, vreg, on, softness = x
        point = dataclasses.replace(start, load_kw=load * start.load_kw, load_kvar=load * start.load_kvar)
        taps = dataclasses.replace(controls.regulators, vreg=controls.regulators.vreg.at[1].add(vreg))
        banks = dataclasses.replace(controls.capacitors, on=controls.capacitors.on.at[0].add(on))
        changed = controls.replace(regulators=taps, capacitors=banks)
        point, flow, gap = settle_continuously(grid, point, changed, tight, hour=12.0, softness=softness)
        return jnp.stack([gridjax.losses(grid, point, flow).real, jnp.abs(flow.v[-1]), point.capacitor[0]]), gap

    x = jnp.array([1.0, 0.0, 0.0, 1.5])
    forward, gap = jax.jit(jax.jacfwd(outcome, has_aux=True))(x)
    reverse, _ = jax.jit(jax.jacrev(outcome, has_aux=True))(x)
    assert gap <= GAP
    h = 1e-4
    shifted = x[None] + h * jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    ahead, behind = np.split(jax.jit(jax.vmap(lambda x: outcome(x)[0]))(shifted), 2)
    differences = (ahead - behind).T / (2 * h)
    np.testing.assert_allclose(forward, reverse, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(forward, differences, rtol=1e-4, atol=1e-6)
    assert np.all(np.abs(differences[2]) > 1e-4)


def test_what_is_not_solved_says_so_and_has_no_derivative():
    feeder = gridjax.feeders.ieee13()
    grid = gridjax.compile(feeder)
    controls = switching(feeder, grid)

    def loss(scale):
        point = dataclasses.replace(grid.nominal, load_kw=scale * grid.nominal.load_kw)
        point, flow, gap = settle_continuously(grid, point, controls)
        return jnp.sum(point.tap), (gap, flow.converged)

    slopes, (gap, converged) = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(jnp.array([1.0, 60.0]))
    np.testing.assert_array_equal(converged, [True, False])
    assert gap[0] <= GAP and np.isinf(gap[1])
    assert slopes[0] != 0 and slopes[1] == 0
