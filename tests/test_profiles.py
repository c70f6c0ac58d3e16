"""Profiles: one step's operating point from either form, under the transforms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax import profiles
from gridjax.grid import OperatingPoint
from gridjax.profiles import Kinds, Profiles, Shapes

POINT = OperatingPoint(
    load_kw=jnp.array([10.0, 20.0, 30.0]),
    load_kvar=jnp.array([1.0, 2.0, 3.0]),
    generation_kw=jnp.array([50.0, -5.0]),
    generation_kvar=jnp.array([4.0, 0.5]),
    tap=jnp.array([1.05]),
    capacitor=jnp.array([1.0, 0.0]),
    source_pu=jnp.array([1.02]),
)
SHAPES = Shapes(
    p=jnp.array([[0.5, 2.0, 7.0], [0.25, 3.0, 8.0]]),
    q=jnp.array([[0.1, 2.0, -1.0], [0.2, 3.0, -2.0]]),
    hour=jnp.array([0.5, 1.5]),
    kinds=Kinds(load=(1, -1, 0), generation=(2, 0), actual=(False, False, True)),
)


def by_hand(t):
    """The second step's or the first's powers."""
    p, q = np.array(SHAPES.p)[t], np.array(SHAPES.q)[t]
    return dataclasses.replace(
        POINT,
        load_kw=jnp.array([10 * p[1], 20.0, 30 * p[0]]),
        load_kvar=jnp.array([1 * q[1], 2.0, 3 * q[0]]),
        generation_kw=jnp.array([p[2], -5 * p[0]]),
        generation_kvar=jnp.array([q[2], 0.5 * q[0]]),
    )


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-14)


def test_both_forms_give_the_point_by_hand():
    dense = profiles.expand(POINT, SHAPES)
    assert profiles.steps(dense) == profiles.steps(SHAPES) == 2
    for t in (0, 1):
        same(profiles.at(POINT, SHAPES, t), by_hand(t))
        same(profiles.at(POINT, dense, t), by_hand(t))
        same(jax.jit(profiles.at)(POINT, dense, jnp.asarray(t)), by_hand(t))


def test_a_slice_is_a_step_of_a_scan():
    for series in (SHAPES, profiles.expand(POINT, SHAPES)):
        same(profiles.at(POINT, jax.tree.map(lambda a: a[1], series)), by_hand(1))
        _, points = jax.lax.scan(lambda c, step: (c, profiles.at(POINT, step)), None, series)
        same(jax.tree.map(lambda a: a[1], points), by_hand(1))
        same(profiles.at(POINT, profiles.window(series, 1, 2), 0), by_hand(1))


def test_scenarios_vmap_and_derivatives_flow():
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), SHAPES)
    points = jax.vmap(lambda s: profiles.at(POINT, s, 1))(many)
    np.testing.assert_allclose(points.load_kw[1], [60.0, 20.0, 15.0])
    slope = jax.grad(lambda s: profiles.at(POINT, s, 1).load_kw.sum())(SHAPES)
    np.testing.assert_allclose(slope.p, [[0, 0, 0], [30, 10, 0]])
    slope = jax.grad(lambda point: profiles.at(point, SHAPES, 1).generation_kw.sum())(POINT)
    np.testing.assert_allclose(slope.generation_kw, [0.0, 0.25])


def test_source_voltages_come_from_the_series_if_it_has_them():
    pu = jnp.array([[0.98], [1.0]])
    same(profiles.at(POINT, SHAPES, 1).source_pu, POINT.source_pu)
    for series in (SHAPES, profiles.expand(POINT, SHAPES)):
        assert profiles.at(POINT, dataclasses.replace(series, source_pu=pu), 0).source_pu == 0.98
    assert profiles.expand(POINT, dataclasses.replace(SHAPES, source_pu=pu)).source_pu.shape == (2, 1)


def test_constant_and_no_shapes_at_all():
    flat = profiles.constant(POINT, jnp.arange(3.0))
    same(profiles.at(POINT, flat, 2), POINT)
    none = Shapes(jnp.zeros((2, 0)), jnp.zeros((2, 0)), jnp.arange(2.0), kinds=Kinds((-1,) * 3, (-1,) * 2, ()))
    same(profiles.at(POINT, none, 1), POINT)


def test_precision_is_the_points():
    narrow = jax.tree.map(lambda a: a.astype(jnp.float32), (POINT, SHAPES))
    for leaf in jax.tree.leaves(profiles.at(*narrow, 0)):
        assert leaf.dtype == jnp.float32


def test_refusals():
    with pytest.raises(ValueError, match="load 1 follows shape 3"):
        Kinds((0, 3), (), (False,))
    short = dataclasses.replace(SHAPES, kinds=Kinds((0,), (0, 1), (False,) * 3))
    with pytest.raises(ValueError, match="shapes for 1 rows"):
        profiles.at(POINT, short, 0)


def test_dense_profiles_are_absolute():
    dense = profiles.expand(POINT, SHAPES)
    assert isinstance(dense, Profiles)
    other = dataclasses.replace(POINT, load_kw=POINT.load_kw * 9)
    same(profiles.at(other, dense, 0).load_kw, profiles.at(POINT, dense, 0).load_kw)
