"""Electric cars: balance, limits, departures, and the requests of simple charging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridjax.control import charging

NIGHT = charging.sessions([3, 4, 4], [1.25, 2.0, 0.0], [6.6, 7.0, 3.5], [20.0, 40.0, 5.0], kw=7.4, efficiency=0.9)


def drive(s, rule, hours, steps, hour=0.0):
    """All powers (steps, n), the last state and the sum of the books under a request rule."""

    def step(state, _):
        kw, state, books = charging.charge(s, state, rule(s, state, hours), hours)
        return state, (kw, books)

    state, (kw, books) = jax.jit(lambda: jax.lax.scan(step, charging.initial(s, hour), None, length=steps))()
    return np.asarray(kw), state, jax.tree.map(lambda a: np.asarray(a).sum(axis=0), books)


@pytest.mark.parametrize("rule", [charging.at_once, charging.evenly, charging.at_last])
@pytest.mark.parametrize("hours", [1.0, 0.25, 0.7])
def test_what_can_be_delivered_is_and_the_rest_is_booked(rule, hours):
    kw, state, books = drive(NIGHT, rule, hours, steps=int(9 / hours))
    can = 7.4 * 0.9 * np.array([5.35, 5.0, 3.5])
    delivered = np.minimum([20.0, 40.0, 5.0], can)
    np.testing.assert_allclose(state.kwh, delivered, rtol=1e-12)
    np.testing.assert_allclose(books.undelivered_kwh, np.array([20.0, 40.0, 5.0]) - delivered, atol=1e-12)
    np.testing.assert_allclose(books.drawn_kwh, delivered / 0.9, rtol=1e-12)
    np.testing.assert_allclose(books.loss_kwh, delivered / 0.9 * 0.1, rtol=1e-12)
    np.testing.assert_allclose(kw.sum(axis=0) * hours, books.drawn_kwh, rtol=1e-12)


def test_the_rules_differ_in_when():
    first = {}
    for rule in (charging.at_once, charging.evenly, charging.at_last):
        kw, _, _ = drive(NIGHT, rule, 0.5, steps=16)
        first[rule.__name__] = kw[:, 0]
    hour = 0.5 * np.arange(16) + 0.25
    centre = {name: kw @ hour / kw.sum() for name, kw in first.items()}
    assert centre["at_once"] < centre["evenly"] < centre["at_last"]
    # Evenly: 20 kWh over 5.35 h, and a part of a step pays a part.
    np.testing.assert_allclose(first["evenly"][4:12], 20 / 0.9 / 5.35, rtol=1e-12)
    np.testing.assert_allclose(first["evenly"][2], 20 / 0.9 / 5.35 * 0.5, rtol=1e-12)
    assert first["at_last"][:5].max() == 0 and first["at_last"][12] == pytest.approx(7.4)


def test_nothing_flows_before_arrival_and_after_departure():
    state = charging.initial(NIGHT, 10.0)
    kw, _, books = charging.charge(NIGHT, state, jnp.full(3, 5.0), 1.0)
    np.testing.assert_array_equal(kw, 0)
    np.testing.assert_array_equal(books.undelivered_kwh, 0)
    kw, _, _ = charging.charge(NIGHT, charging.initial(NIGHT, 1.0), jnp.full(3, 50.0), 0.5)
    np.testing.assert_allclose(kw, [3.7, 0.0, 7.4])


def test_vehicle_to_grid_gives_back_what_it_may():
    s = charging.sessions([0], [0.0], [10.0], [4.0], kw=11.0, vehicle_to_grid=(5.0, 0.8, 6.0), room_kwh=30.0)
    kw, state, books = charging.charge(s, charging.initial(s), jnp.array([-9.0]), 0.5)
    np.testing.assert_allclose((kw[0], state.kwh[0]), (-5.0, -5 * 0.5 / 0.8))
    kw, state, books = charging.charge(s, state, jnp.array([-9.0]), 2.0)
    assert float(state.kwh[0]) == -6.0
    np.testing.assert_allclose(kw[0], -(6 - 3.125) * 0.8 / 2)
    np.testing.assert_allclose(books.returned_kwh + books.loss_kwh + books.stored_kwh, 0, atol=1e-12)
    for _ in range(4):
        kw, state, books = charging.charge(s, state, jnp.array([99.0]), 1.0)
    assert float(state.kwh[0]) == 30.0
    without = charging.sessions([0], [0.0], [10.0], [4.0])
    assert charging.charge(without, charging.initial(without), jnp.array([-9.0]), 0.5)[0][0] == 0


@jax.jit
def random_run(s, requests, hours):
    def step(state, request):
        kw, state, books = charging.charge(s, state, request, hours)
        return state, (kw, state.kwh, books)

    return jax.lax.scan(step, charging.initial(s), requests)[1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), hours=st.sampled_from([1 / 60, 0.25, 1.0]), efficiency=st.integers(5, 100))
def test_books_balance_and_limits_hold(seed, hours, efficiency):
    rng = np.random.default_rng(seed)
    n, steps = 5, 30
    arrival = rng.uniform(0, 0.6 * steps * hours, n)
    departure = arrival + rng.uniform(0, 0.6 * steps * hours, n)
    wanted, spare = rng.uniform(0, 30, n), rng.uniform(0, 10, n)
    room = wanted + rng.uniform(0, 10, n)
    s = charging.sessions(
        np.zeros(n),
        arrival,
        departure,
        wanted,
        kw=11.0,
        efficiency=efficiency / 100,
        vehicle_to_grid=(rng.uniform(0, 11, n), 1 - efficiency / 200, spare),
        room_kwh=room,
    )
    kw, kwh, books = jax.tree.map(np.asarray, random_run(s, rng.normal(0, 12, (steps, n)), hours))
    left = books.drawn_kwh - books.returned_kwh - books.stored_kwh - books.loss_kwh
    np.testing.assert_allclose(left, 0, atol=1e-9)
    assert (kwh <= room).all() and (kwh >= -spare).all()
    assert (np.abs(kw) <= 11 * (1 + 1e-12)).all()
    gone = departure <= steps * hours
    at_end = np.where(gone, np.maximum(wanted - kwh[-1], 0), 0)
    np.testing.assert_allclose(books.undelivered_kwh.sum(axis=0), at_end, atol=1e-12)
    assert ((books.undelivered_kwh > 0).sum(axis=0) <= 1).all()


def test_derivatives_are_those_of_differences():
    s = charging.sessions([0, 1], [0.3, 0.0], [3.6, 4.0], [20.0, 6.0], vehicle_to_grid=(3.0, 0.9, 2.0))

    @jax.jit
    def value(requests, s):
        kw, kwh, books = random_run(s, requests, 1.0)
        return jnp.sum(kw**2) + jnp.sum(books.undelivered_kwh**2) + jnp.sum(kwh[1:] * books.loss_kwh[1:])

    requests = jnp.array([[4.0, -2.0], [5.0, 3.0], [3.0, 7.0], [6.0, 2.0]])
    by_request, by_settings = jax.jit(jax.grad(value, (0, 1), allow_int=True))(requests, s)
    for k, e in enumerate(np.eye(8).reshape(8, 4, 2) * 1e-5):
        difference = float(value(requests + e, s) - value(requests - e, s)) / 2e-5
        assert float(by_request.ravel()[k]) == pytest.approx(difference, rel=1e-6, abs=1e-6)
    up, down = (value(requests, s.replace(departure_hour=s.departure_hour + d)) for d in (1e-5, -1e-5))
    assert float(by_settings.departure_hour.sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-5, abs=1e-6)


def test_vmap_is_a_loop():
    requests = jnp.asarray(np.random.default_rng(0).normal(0, 9, (4, 3)))
    state = charging.initial(NIGHT, 2.0)
    run = jax.jit(lambda r: charging.charge(NIGHT, state, r, 0.5)[0])
    batch = jax.jit(jax.vmap(run))(requests)
    for k in range(4):
        np.testing.assert_allclose(batch[k], run(requests[k]), rtol=1e-14)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(departure_hour=[1.0, 0.5]), "session 1 departs before"),
        (dict(wanted_kwh=-1.0), "session 0 has a negative"),
        (dict(efficiency=0.0), "efficiency"),
        (dict(room_kwh=1.0), "less room"),
        (dict(row=[-1, 0]), "negative row"),
        (dict(wanted_kwh=np.nan), "not a number"),
    ],
)
def test_refusals(changes, words):
    given = dict(row=[0, 1], arrival_hour=0.6, departure_hour=[7.0, 8.0], wanted_kwh=4.0) | changes
    with pytest.raises(ValueError, match=words):
        charging.sessions(**given)


def test_place_adds_to_the_loads():
    from feeders_for_tests import two_bus_feeder

    import gridjax

    point = gridjax.compile(two_bus_feeder()).nominal
    s = charging.sessions([0, 0], 0.0, 8.0, 4.0)
    assert float(charging.place(point, s, jnp.array([5.0, 2.0])).load_kw[0]) == 307.0
