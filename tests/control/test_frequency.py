"""The swing equation, governors, droop and relays against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax.control import inverters, standard
from gridjax.control.fleet import add_fleet
from gridjax.control.frequency import (
    Machines,
    Relay,
    RelayState,
    Swing,
    fastest_s,
    follow,
    followers,
    shed,
    swing,
    timer,
)
from gridjax.control.settings import Rule, settings

S = 1000.0


def machines(kva=(S,), **given):
    usual = {"low": -1e6, "high": 1e6, "h": 3.0, "r": 0.05, "t": 0.4, "d": 1.0}
    columns = (kva, *{**usual, **given}.values())
    return Machines(*(jnp.broadcast_to(jnp.asarray(c, float), (len(kva),)) for c in columns))


def run(m, change, seconds=0.05, count=200, on=None):
    """The course after a step of the demand from balance: w at each time, slopes, books."""
    on = jnp.ones_like(m.kva) if on is None else on
    reference = jnp.zeros_like(m.kva)

    def one(state, _):
        state, books = swing(m, on, reference, state, jnp.asarray(change), jnp.asarray(seconds))
        return state, (state.w, books, state)

    start = Swing(jnp.zeros(()), reference)
    return jax.lax.scan(one, start, None, count)[1]


go = jax.jit(run, static_argnames=("seconds", "count"))


def test_a_step_is_followed_as_the_second_order_formula_says():
    """Poles of the swing equation with one lag: s^2 + s (1/T + D/2H) + (1/R + D)/(2HT), for dP in per unit of S."""
    h, r, t, d, dp = 3.0, 0.05, 0.4, 1.0, 0.1
    w, books, _ = go(machines(h=h, r=r, t=t, d=d), dp * S)
    natural = math.sqrt((1 / r + d) / (2 * h * t))
    decay = (1 / t + d / (2 * h)) / 2
    assert decay < natural  # it swings
    damped = math.sqrt(natural**2 - decay**2)
    final = -dp / (1 / r + d)
    rocof = -dp / (2 * h)
    time = 0.05 * np.arange(1, 201)
    # w(0) = 0 and w'(0) = rocof fix the two constants beside the final value.
    a, b = -final, (rocof - decay * final) / damped
    exact = final + np.exp(-decay * time) * (a * np.cos(damped * time) + b * np.sin(damped * time))
    np.testing.assert_allclose(w, exact, atol=1e-8)
    assert float(w[-1]) == pytest.approx(final, rel=1e-3)
    # The nadir, where w' = 0, lies between two inner steps.
    at = math.atan((b * damped - decay * a) / (a * damped + decay * b)) % math.pi / damped
    nadir = final + math.exp(-decay * at) * (a * math.cos(damped * at) + b * math.sin(damped * at))
    assert float(jnp.min(books.lowest)) == pytest.approx(nadir, rel=2e-4)
    assert nadir < 1.2 * final


def test_the_first_slope_is_the_step_over_the_inertia():
    _, books, _ = go(machines(kva=(S, 500.0), h=(3.0, 1.0)), 100.0, seconds=1e-4, count=1)
    assert float(books.slope[0]) == pytest.approx(-100.0 / (2 * 3 * S + 2 * 1 * 500), rel=1e-3)


def test_in_the_end_droop_shares_the_step_and_who_is_off_does_not():
    m = machines(kva=(S, 500.0, 800.0), r=(0.03, 0.05, 0.04), t=(0.0, 0.3, 0.3), h=2.0)
    on = jnp.array([1.0, 1.0, 0.0])
    w, _, state = go(m, 150.0, seconds=0.1, on=on)
    expected = -150.0 / (S * (1 / 0.03 + 1) + 500.0 * (1 / 0.05 + 1))
    assert float(w[-1]) == pytest.approx(expected, rel=1e-6)
    assert float(state.governor_kw[-1, 1]) == pytest.approx(-expected * 500 / 0.05, rel=1e-6)


def test_a_grid_forming_droop_with_a_filter_is_a_machine_without_lag():
    """f = f0 - R LPF(P), of time constant Tf: after a step the first-order response of 2H = Tf / R."""
    r, tf = 0.03, 0.12
    w, *_ = go(machines(h=tf / r / 2, r=r, t=0.0, d=0.0), 200.0, seconds=0.1, count=20)
    time = 0.1 * np.arange(1, 21)
    np.testing.assert_allclose(w, -r * 0.2 * (1 - np.exp(-time / tf)), atol=1e-6)
    assert float(fastest_s(machines(h=tf / r / 2, r=r, t=0.0, d=0.0))) == pytest.approx(tf)


def test_books_balance_and_beyond_its_limit_a_machine_lets_the_frequency_fall():
    m = machines(kva=(S, 500.0), high=(100.0, 50.0), t=(0.0, 0.3), h=2.0, d=0.5)
    w, books, state = go(m, 400.0, seconds=0.1, count=100)
    weight = 2 * 2.0 * 1500
    before = np.concatenate([[0.0], np.asarray(w)[:-1]])
    given = np.asarray(books.mechanical_kws).sum(axis=1) - 400.0 * 0.1 - np.asarray(books.damped_kws)
    np.testing.assert_allclose(weight * (np.asarray(w) - before), given, rtol=1e-10, atol=1e-10)
    assert float(jnp.max(state.governor_kw)) <= 50.0
    slope = (150.0 - 400.0 - 0.5 * 1500 * float(w[-1])) / weight
    assert float(books.slope[-1]) == pytest.approx(slope, rel=0.01) and slope < 0


def test_followers_are_those_of_the_standard():
    feeder = add_fleet(gridjax.feeders.ieee13(), 0, count=3)
    f = followers(jnp.array([1.0, 1.0, 1.0]), 60.0)
    s = settings(feeder, Rule(frequency_watt=True))
    before, limits = jnp.array([0.9, 0.5, 0.2]), (jnp.zeros(3), jnp.ones(3))
    for hz in (58.9, 59.98, 60.0, 60.5, 61.1):
        after = follow(f, before, before, limits, jnp.asarray(hz / 60 - 1), jnp.asarray(1e3))
        standards = jnp.clip(inverters.droop(s, before, hz), s.least_power, 1.0)
        np.testing.assert_allclose(after, standards, atol=1e-9)
    w = jnp.asarray(60.6 / 60 - 1)
    ninety = follow(f, before, before, limits, w, jnp.asarray(standard.DROOP_SECONDS))
    whole = follow(f, before, before, limits, w, jnp.asarray(1e3))
    np.testing.assert_allclose((before - ninety) / (before - whole), 0.9, rtol=1e-9)


def test_relays_wait_and_forget():
    relay = Relay(jnp.array([-0.02, -0.03, -jnp.inf]), jnp.asarray(0.2))
    state = RelayState(jnp.zeros(3), jnp.zeros(3, bool))
    fallen = []
    for w in (-0.025, 0.0, -0.025, -0.035, -0.035, 0.0):
        state = shed(relay, state, jnp.asarray(w), jnp.asarray(0.1))
        fallen.append(state.fallen.tolist())
    assert fallen[2] == [False] * 3  # the timer fell back in between
    assert fallen[3] == [True, False, False]
    assert fallen[4:] == [[True, True, False]] * 2  # what fell stays off, and a block without relay never falls
    assert float(timer(jnp.asarray(1.0), jnp.asarray(True), jnp.asarray(0.5))) == 1.5


def test_the_nadir_has_a_derivative_by_inertia_and_droop():
    def nadir(h, r):
        return jnp.min(run(machines(h=h, r=r), 100.0, seconds=0.1, count=12)[1].lowest)

    slopes = jax.jit(jax.grad(nadir, argnums=(0, 1)))(3.0, 0.05)
    value = jax.jit(nadir)
    for k, (by, slope) in enumerate(zip((1e-5, 1e-7), slopes, strict=True)):
        up, down = (value(*(x + s * by * (k == i) for i, x in enumerate((3.0, 0.05)))) for s in (1, -1))
        assert float(slope) == pytest.approx(float(up - down) / (2 * by), rel=1e-5) and float(slope) != 0


def test_single_precision_follows_double():
    m = machines()
    small = jax.tree.map(lambda a: a.astype(jnp.float32), m)
    exact, *_ = go(m, 100.0)
    start = Swing(jnp.zeros((), jnp.float32), jnp.zeros(1, jnp.float32))

    def one(state, _):
        seconds, change = jnp.float32(0.05), jnp.float32(100.0)
        state, _ = swing(small, jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32), state, change, seconds)
        return state, state.w

    _, w = jax.lax.scan(one, start, None, 200)
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w, exact, atol=1e-7)
