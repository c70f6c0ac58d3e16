"""Derivatives of the solution: against central differences, forward = reverse, and under jit and vmap."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import MIDDLE, two_bus_feeder
from jax.flatten_util import ravel_pytree

import gridjax
from gridjax.feeder import (
    Bus,
    Capacitor,
    Feeder,
    Generator,
    Line,
    LineCode,
    Load,
    Regulator,
    SequenceCode,
    Source,
    Switch,
    Transformer,
    Winding,
)

# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FIELDS = [f.name for f in dataclasses.fields(gridjax.OperatingPoint)]


def small_feeder() -> Feeder:
    """Two sources, a regulator between them, phases that end, a capacitor of two steps, an idle load."""
    return Feeder(
        "small",
        60.0,
        (*(Bus(name, MIDDLE, (1, 2, 3)) for name in "sab"), Bus("c", MIDDLE, (1, 3))),
        (
            Source("main", "s.1.2.3", 4.16, 1.02, 0.0, 0.1, 0.5, 0.2, 0.9),
            Source("other", "b.1.2.3", 4.16, 1.0, -2.0, 3.0, 20.0, 3.0, 20.0),
        ),
        (
            SequenceCode("three", 3, 0.2, 0.4, 0.5, 1.2, 10.0, 5.0),
            LineCode("two", ((0.8, 0.13), (0.13, 0.8)), ((0.84, 0.28), (0.28, 0.85)), ((7.0, -1.0), (-1.0, 7.0))),
        ),
        lines=(Line("l1", "s.1.2.3", "a.1.2.3", "three", 0.5), Line("l2", "b.3.1", "c.3.1", "two", 0.4)),
        transformers=(
            Transformer(
                "t",
                3,
                (Winding("a.1.2.3.0", "wye", 4.16, 2000.0), Winding("b.1.2.3.0", "wye", 4.16, 2000.0, tap=1.025)),
                (3.0,),
                0.2,
                0.4,
            ),
        ),
        regulators=(Regulator("r", "t", 2),),
        switches=(Switch("sw", "c.1", "b.1", closed=False),),
        capacitors=(Capacitor("cap", "b.1.2.3", 3, "wye", 4.16, (120.0, 60.0), (True, False), "b.0.0.0"),),
        loads=(
            Load("p", "a.1.2.3.0", 3, "wye", 1, 4.16, 400.0, 150.0, vmin_pu=0.8),
            Load("d", "b.1.2.3", 3, "delta", 5, 4.16, 300.0, 120.0, vmin_pu=0.8),
            Load("e", "c.1.3", 1, "delta", 4, 4.16, 150.0, 60.0, cvr_watts=0.8, cvr_vars=2.5, vmin_pu=0.8),
            Load("z", "c.3.0", 1, "wye", 8, 2.4, 60.0, 20.0, vmin_pu=0.8, zipv=(0.3, 0.3, 0.4, 0.2, 0.3, 0.5, 0.7)),
            Load("low", "c.1.0", 1, "wye", 1, 2.4, 60.0, 20.0, vmin_pu=1.2, vmax_pu=1.4),  # below its band
            Load("idle", "c.1.0", 1, "wye", 1, 2.4, 0.0, 0.0),
        ),
        generators=(Generator("g", "c.1.0", 1, "wye", 2.4, 40.0, 10.0),),
    )


FEEDER = small_feeder()
NODE = FEEDER.node_names.index("c.3")


def outcomes(grid, point, method="sweep"):
    """Losses (kW and kvar), a voltage magnitude and its real part, each of order one."""
    flow = gridjax.solve(grid, point, method=method, tol=1e-13, max_iterations=300)
    losses = gridjax.losses(grid, point, flow)
    return jnp.stack([losses.real, losses.imag, jnp.abs(flow.v[NODE]), flow.v[NODE].real])


@pytest.fixture(scope="module")
def grid():
    return gridjax.compile(FEEDER)


@pytest.fixture(scope="module")
def points(grid):
    """The nominal point and another, off the reference taps and steps."""
    n = grid.nominal
    other = n.replace(
        load_kw=n.load_kw * 1.2,
        generation_kvar=n.generation_kvar - 20.0,
        tap=jnp.array([0.98]),
        capacitor=jnp.array([0.7, 0.4]),
        source_pu=jnp.array([1.01, 0.99]),
    )
    return jax.tree.map(lambda *a: jnp.stack(a), n, other)


def pick(points, i):
    return jax.tree.map(lambda a: a[i], points)


JACOBIAN = jit(jax.jacrev(outcomes, argnums=1))


@pytest.fixture(scope="module")
def reverse(grid, points):
    """Both points' Jacobians, one by one."""
    return [JACOBIAN(grid, pick(points, i)) for i in range(2)]


@pytest.fixture(scope="module")
def differences(grid, points):
    """The same by central differences: every entry of every field, in one batch by Newton's method."""
    solve = jit(jax.vmap(lambda p: outcomes(grid, p, "newton")))
    out = []
    for i in range(2):
        point = pick(points, i)
        flat, build = ravel_pytree(point)
        steps = 1e-4 * jnp.maximum(jnp.abs(flat), 1.0)
        moves = jnp.diag(steps)
        up, down = (solve(jax.vmap(build)(flat[None] + sign * moves)) for sign in (1, -1))
        slopes = (up - down) / (2 * steps[:, None])
        out.append(jax.vmap(build, in_axes=1)(slopes))
    return out


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("i", [0, 1])
def test_reverse_mode_equals_central_differences(reverse, differences, field, i):
    """Of losses and voltage with respect to every field of the operating point."""
    found, expected = (np.asarray(getattr(x[i], field)) for x in (reverse, differences))
    assert np.isfinite(found).all()
    # Power at rated voltage of an idle load and of others: nothing is without influence.
    assert (np.abs(found).max(axis=0) > 1e-7).all()
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-5, atol=1e-6)


def test_forward_mode_equals_reverse_mode(grid, points, reverse):
    forward = jit(jax.jacfwd(outcomes, argnums=1))
    for i in range(2):
        for field, found in dataclasses.asdict(forward(grid, pick(points, i))).items():
            expected = getattr(reverse[i], field)
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


def test_vmap_of_gradients_is_a_loop(grid, points, reverse):
    """Also the gradient of a sum over a batch, which differentiates the batched solve."""
    many = jit(jax.vmap(jax.jacrev(outcomes, argnums=1), in_axes=(None, 0)))(grid, points)

    def total(points):
        return jax.vmap(outcomes, in_axes=(None, 0))(grid, points)[:, 0].sum()

    summed = jit(jax.grad(total))(points)
    for i in range(2):
        for field in FIELDS:
            expected = np.asarray(getattr(reverse[i], field))
            tolerance = {"rtol": 1e-8, "atol": 1e-10 * np.abs(expected).max()}
            np.testing.assert_allclose(getattr(many, field)[i], expected, **tolerance)
            np.testing.assert_allclose(getattr(summed, field)[i], expected[0], **tolerance)


def test_a_feeder_without_regulators_capacitors_and_generators():
    """Fields of no length; dV/dP from two solves."""
    grid = gridjax.compile(two_bus_feeder())

    def magnitude(point):
        return jnp.abs(gridjax.solve(grid, point, tol=1e-13).v[4])

    slope = jit(jax.grad(magnitude))(grid.nominal)
    assert slope.tap.shape == slope.capacitor.shape == slope.generation_kw.shape == (0,)
    compiled = jit(magnitude)
    h = 0.1
    ends = [compiled(grid.nominal.replace(load_kw=grid.nominal.load_kw + sign * h)) for sign in (1, -1)]
    assert slope.load_kw[0] == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-6)
    assert slope.load_kw[0] < 0


def test_what_only_some_of_the_inputs_move_has_derivatives_of_second_order(grid, points):
    """A weight scales a gradient; a tap turns a tangent; a direction has a load's part alone."""
    point = jax.tree.map(lambda a: a[0], points)

    def v(kw, tap):
        return jnp.abs(gridjax.solve(grid, point.replace(load_kw=kw, tap=tap), tol=1e-12).v)

    def total(kw, weight):
        return weight * jnp.sum(v(kw, point.tap) ** 2)

    kw, tap, toward = point.load_kw, point.tap, jnp.ones_like(point.tap)
    slope = jit(jax.grad(total))
    by_weight = jit(lambda w: jax.jvp(lambda w: jax.grad(total)(kw, w), (w,), (1.0,))[1])(2.0)
    np.testing.assert_allclose(by_weight, slope(kw, 1.0), rtol=1e-9)
    np.testing.assert_allclose(jit(jax.jacrev(lambda w: jax.grad(total)(kw, w)))(2.0), by_weight, rtol=1e-9)

    def tangent(d, tap):
        return jax.jvp(v, (kw, tap), (d, toward))[1]

    ahead = jit(tangent)
    by_direction = jit(lambda: jax.jvp(lambda d: tangent(d, tap), (kw,), (kw,))[1])()
    np.testing.assert_allclose(by_direction, ahead(kw, tap) - ahead(0 * kw, tap), rtol=1e-6, atol=1e-12)
    by_tap = jit(lambda: jax.jvp(lambda t: tangent(kw, t), (tap,), (toward,))[1])()
    h = 1e-5
    want = (ahead(kw, tap + h * toward) - ahead(kw, tap - h * toward)) / (2 * h)
    np.testing.assert_allclose(by_tap, want, rtol=1e-5, atol=1e-7)
