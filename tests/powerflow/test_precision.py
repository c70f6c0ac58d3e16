"""Accelerators multiply float32 in fewer bits unless each product says otherwise: none of ours may be left to that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from programs_for_tests import exact, products

import gridjax
from gridjax import feeders
from gridjax.control.fleet import add_fleet
from gridjax.control.regulation import inverters, settle
from gridjax.control.settings import Rule


@functools.cache
def tiers():
    """A grid that is solved as accelerators solve it."""
    return dataclasses.replace(gridjax.compile(feeders.ieee13(), dtype=jnp.float32), tree=None)


def solved(grid, point, **how):
    return gridjax.solve(grid, point, **how)


def all_results(grid, point):
    flow = solved(grid, point)
    extra = gridjax.currents(grid, point, flow), gridjax.losses(grid, point, flow)
    return flow, extra, gridjax.sequence_voltages(grid, flow)


def slopes(grid, point, **how):
    def scalar(kw):
        at = point.replace(load_kw=kw)
        return jnp.sum(jnp.abs(solved(grid, at, **how).v))

    return jax.value_and_grad(scalar)(point.load_kw), jax.jvp(scalar, (point.load_kw,), (point.load_kw,))


@pytest.mark.parametrize(
    "function",
    [
        solved,
        all_results,
        functools.partial(solved, method="newton"),
        slopes,
        functools.partial(slopes, method="newton"),
    ],
    ids=["sweep", "results", "newton", "sweep's derivatives", "newton's derivatives"],
)
def test_products_are_exact(function):
    grid = tiers()
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), grid.nominal)
    jaxpr = jax.make_jaxpr(jax.vmap(function, in_axes=(None, 0)))(grid, batch)
    found = list(products(jaxpr.jaxpr))
    assert exact(found)


def test_products_of_assembly_are_exact():
    layout, parameters = gridjax.lay_out(feeders.ieee13())
    found = list(
        products(jax.make_jaxpr(lambda p: gridjax.assemble(layout, p))(jax.tree.map(jnp.asarray, parameters)).jaxpr)
    )
    assert exact(found)


def test_products_of_inverters_at_rest_are_exact():
    feeder = add_fleet(feeders.ieee13(), 1, count=3)
    grid = dataclasses.replace(gridjax.compile(feeder), tree=None)
    s = inverters(feeder, grid, Rule())
    found = list(products(jax.make_jaxpr(lambda p: settle(grid, p, s))(grid.nominal).jaxpr))
    assert exact(found)
