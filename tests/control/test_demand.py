"""Flexible loads: balance, limits, price."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridjax.control import demand

ONE = dict(
    sheddable=0.3, puttable=0.5, owed_most_kwh=6.0, catch_up_kw=4.0, payback=1.25, shed_price=2.0, delay_price=0.1
)


def ask(base, shed=0.0, put_off=0.0):
    return demand.DemandRequest(*(jnp.atleast_1d(jnp.asarray(x, float)) for x in (base, shed, put_off)))


def test_by_hand():
    s = demand.flexible_loads([7], **ONE)
    kw, state, books = demand.serve(s, demand.initial(s), ask(10.0, 2.0, 4.0), 0.5)
    np.testing.assert_allclose(kw, [4.0])
    np.testing.assert_allclose(state.owed_kwh, [2.5])
    np.testing.assert_allclose(books.shed_kwh, [1.0])
    np.testing.assert_allclose(books.cost, [2.0 * 1.0 + 0.1 * 0.5 * 2.5])
    kw, state, books = demand.serve(s, state, ask(10.0, 0.0, -3.0), 0.5)
    np.testing.assert_allclose((kw[0], state.owed_kwh[0]), (13.0, 1.0))
    np.testing.assert_allclose(demand.owed_cost(s, state), [2.0])


@pytest.mark.parametrize(
    ("shed", "put_off", "owed", "kw"),
    [
        (9.0, 0.0, 0.0, 7.0),  # the share that may be shed
        (0.0, 9.0, 0.0, 5.2),  # what may be owed: 6/(1.25 1) = 4.8
        (0.0, 9.0, 4.0, 8.4),
        (-3.0, 0.0, 0.0, 10.0),
        (0.0, -9.0, 6.0, 14.0),  # the catch-up limit
        (0.0, -9.0, 1.0, 11.0),  # no more than is owed
        (3.0, 9.0, 0.0, 2.2),
    ],
)
def test_limits(shed, put_off, owed, kw):
    s = demand.flexible_loads([0], **ONE)
    out, _, _ = demand.serve(s, demand.DemandState(jnp.array([owed])), ask(10.0, shed, put_off), 1.0)
    np.testing.assert_allclose(out, [kw])


@jax.jit
def random_run(s, requests, hours):
    def step(state, request):
        kw, state, books = demand.serve(s, state, request, hours)
        return state, (kw, state.owed_kwh, books)

    return jax.lax.scan(step, demand.initial(s), requests)[1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), hours=st.sampled_from([1 / 60, 0.25, 1.0]))
def test_books_balance_and_limits_hold(seed, hours):
    rng = np.random.default_rng(seed)
    n, steps = 6, 30
    s = demand.flexible_loads(
        np.arange(n),
        sheddable=rng.uniform(0, 1, n),
        puttable=rng.uniform(0, 1, n),
        owed_most_kwh=rng.uniform(0, 10, n),
        catch_up_kw=rng.uniform(0, 10, n),
        payback=rng.uniform(1, 1.5, n),
    )
    base = rng.uniform(0, 20, (steps, n)) * rng.integers(0, 2, (steps, n))
    requests = demand.DemandRequest(base, rng.normal(0, 10, (steps, n)), rng.normal(0, 10, (steps, n)))
    kw, owed, books = jax.tree.map(np.asarray, random_run(s, requests, hours))
    left = books.demand_kwh + books.extra_kwh - books.served_kwh - books.shed_kwh - books.owed_more_kwh
    np.testing.assert_allclose(left, 0, atol=1e-9)
    assert (owed >= 0).all() and (owed <= np.asarray(s.owed_most_kwh)).all() and (kw >= 0).all()
    np.testing.assert_allclose(owed[-1], books.owed_more_kwh.sum(axis=0), atol=1e-9)


def test_derivatives_are_those_of_differences():
    s = demand.flexible_loads([0], **ONE)
    base = jnp.full((4, 1), 8.0)

    @jax.jit
    def value(x):
        kw, owed, books = random_run(s, demand.DemandRequest(base, x[0], x[1]), 0.5)
        return jnp.sum(kw**2) + jnp.sum(books.cost) + jnp.sum(owed**2)

    x = jnp.array([[[0.5], [1.0], [9.0], [0.2]], [[2.0], [-1.0], [3.0], [-9.0]]])
    gradient = jax.jit(jax.grad(value))(x).ravel()
    for k, e in enumerate(np.eye(8).reshape(8, 2, 4, 1) * 1e-5):
        difference = float(value(x + e) - value(x - e)) / 2e-5
        assert float(gradient[k]) == pytest.approx(difference, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(sheddable=1.2), "share outside"),
        (dict(catch_up_kw=[1.0, -1.0]), "flexible load 1 has a negative"),
        (dict(payback=0.5), "payback below 1"),
        (dict(row=[2, 2]), "shares its load"),
        (dict(owed_most_kwh=np.inf), "not a number"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(ValueError, match=words):
        demand.flexible_loads(**(dict(row=[0, 1]) | changes))


def test_place_keeps_the_power_factor():
    from feeders_for_tests import two_bus_feeder

    import gridjax

    point = gridjax.compile(two_bus_feeder()).nominal
    s = demand.flexible_loads([0], puttable=0.5, owed_most_kwh=1e3)
    request = demand.undisturbed(s, point)
    kw, _, _ = demand.serve(s, demand.initial(s), dataclasses.replace(request, put_off_kw=jnp.array([60.0])), 1.0)
    out = demand.place(point, s, kw)
    np.testing.assert_allclose((out.load_kw[0], out.load_kvar[0]), (240.0, 80.0))
