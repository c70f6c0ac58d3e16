"""The static functions against EPRI's OpenDER over random settings, by hand, and their rounded forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax.control import curves
from gridjax.control.inverters import respond
from gridjax.control.settings import MODES, Rule, settings
from tests.control import der

COUNT, TIMES = 40, 5
respond = jax.jit(respond)


def compare(mode, *, available=(0.0, 1.0), u=(0.885, 1.099), f_hz=None, asked=0.0, rated=0.8, **changes):
    """Largest differences of P and Q, per unit, over random inverters, voltages and powers."""
    seed = sum(map(ord, mode)) + len(changes)
    rng, kvas, kws, rules, s = der.random_fleet(seed, COUNT, mode, rated, **changes)
    ask = rng.uniform(-0.6, 0.6, COUNT) * asked
    units = [der.theirs(*one) for one in zip(rules, kvas, kws, ask, strict=True)]
    off_p, off_q, seen = [], [], []
    for _ in range(TIMES):
        v, p = rng.uniform(*u, COUNT), rng.uniform(*available, COUNT)
        hz = float(rng.uniform(*f_hz)) if f_hz else 60.0
        kw, kvar = respond(s, jnp.asarray(v), jnp.asarray(p * kws), jnp.asarray(ask * kvas), hz)
        if f_hz:  # OpenDER starts its droop from the power of the step before
            for unit, *at in zip(units, v, p, strict=True):
                der.snapshot(unit, *at)
        other = np.array([der.snapshot(unit, *at, hz) for unit, *at in zip(units, v, p, strict=True)])
        off_p.append(np.asarray(kw) / kws - other[:, 0])
        off_q.append(np.asarray(kvar) / kvas - other[:, 1])
        seen.append(other)
    spread = np.std(np.concatenate(seen), axis=0)
    assert min(spread) > 0.02, "the inverters did nothing to compare"
    return np.abs(off_p).max(), np.abs(off_q).max()


def test_volt_var_is_that_of_opender():
    assert max(compare("volt-var", least_power=0.0)) < 1e-12


def test_volt_watt_is_that_of_opender():
    assert max(compare("volt-var", u=(1.0, 1.099), available=(0.5, 1.0), volt_watt=True, least_power=0.0)) < 1e-12


def test_constant_reactive_power_is_that_of_opender():
    assert max(compare("constant reactive power", asked=1.0, least_power=0.0)) < 1e-12


def test_constant_power_factor_is_that_of_opender():
    # Where capability and rating meet, OpenDER searches to 1e-3 W.
    assert max(compare("constant power factor", least_power=0.0)) < 1e-7
    assert max(compare("constant power factor", available=(0.0, 0.6), least_power=0.0)) < 1e-12


def test_watt_var_is_that_of_opender():
    assert max(compare("watt-var", least_power=0.0)) < 1e-7
    assert max(compare("watt-var", available=(0.0, 0.7), least_power=0.0)) < 1e-12


def test_frequency_droop_is_that_of_opender():
    off = compare("volt-var", f_hz=(58.6, 61.1), available=(0.4, 1.0), frequency_watt=True, volt_watt=True)
    assert max(off) < 1e-12


def test_active_power_limit_and_droop_are_those_of_opender():
    off = compare("volt-var", f_hz=(58.6, 61.1), available=(0.4, 1.0), frequency_watt=True, most_power=0.5)
    assert max(off) < 1e-12


def test_priority_of_the_required_reactive_power_is_that_of_opender():
    # OpenDER delivers more than is available where the reactive power that it gives up would leave room for it.
    off = compare("volt-var", available=(0.97, 1.0), rated=1.0, least_power=0.0, priority="minimum")
    assert max(off) < 1e-12


def test_curves_by_hand():
    xs, ys = jnp.array([[0.9, 1.0, 1.0, 1.1]]), jnp.array([[0.25, 0.0, 0.0, -0.25]])
    x = np.array([0.5, 0.9, 0.95, 1.0, 1.02, 1.1, 1.3])
    each = (jnp.tile(a, (len(x), 1)) for a in (xs, ys))
    got = curves.piecewise(jnp.asarray(x), *each)
    np.testing.assert_allclose(got, np.interp(x, [0.9, 1.0, 1.1], [0.25, 0.0, -0.25]), atol=1e-15)


def test_rounded_curves_are_smooth_and_the_exact_ones_outside_their_corners():
    corners, values, width = np.array([0.92, 0.98, 1.02, 1.08]), np.array([0.44, 0.0, 0.0, -0.44]), 0.01
    x = jnp.linspace(0.88, 1.12, 4801)

    def at(x, width):
        each = (jnp.tile(jnp.asarray(a)[None], (len(x), 1)) for a in (corners, values))
        return curves.piecewise(x, *each, width)

    exact, smooth = at(x, 0.0), at(x, width)
    far = np.abs(np.asarray(x)[:, None] - corners).min(axis=1) >= width
    np.testing.assert_allclose(np.asarray(smooth)[far], np.asarray(exact)[far], atol=1e-14)
    assert 1e-3 < np.abs(smooth - exact).max() <= 0.44 / 0.06 * width / 4 + 1e-12
    slope = jax.jvp(lambda x: at(x, width), (x,), (jnp.ones_like(x),))[1]
    np.testing.assert_allclose(slope[1:-1], (smooth[2:] - smooth[:-2]) / (x[2:] - x[:-2]), atol=2e-2)
    # The second derivative is at most the slope over the corner's width: no jumps.
    assert np.abs(np.diff(slope)).max() <= 0.44 / 0.06 / (2 * width) * 5.0001e-5


@pytest.mark.parametrize("mode", MODES[1:])
def test_derivatives_of_all_functions_are_those_of_differences(mode):
    """By voltage, available power and frequency, with rounded corners, where every limit plays a part."""
    rng, kvas, kws, rules, _ = der.random_fleet(5, 60, mode, volt_watt=True, frequency_watt=True)
    rules = {f"pv{i}": rule for i, rule in enumerate(rules)}
    s = settings(der.feeder(kvas, kws), rules, smooth=0.004)
    u, p = jnp.asarray(rng.uniform(0.9, 1.09, 60)), jnp.asarray(rng.uniform(0.1, 1.0, 60) * kws)
    asked, hz = jnp.asarray(rng.uniform(-0.5, 0.5, 60) * kvas), jnp.asarray(rng.uniform(59.0, 61.0, 60))

    def powers(u, p, hz):
        kw, kvar = respond(s, u, p, asked, hz)
        return kw / s.kva, kvar / s.kva

    h = 1e-6
    steps = (jnp.ones(60), s.kva, jnp.ones(60))
    for k in range(3):
        along = [a if i == k else jnp.zeros(60) for i, a in enumerate(steps)]
        slope = jax.jvp(powers, (u, p, hz), tuple(along))[1]
        ahead, behind = (
            powers(*(a + sign * h * b for a, b in zip((u, p, hz), along, strict=True))) for sign in (1, -1)
        )
        for got, a, b in zip(slope, ahead, behind, strict=True):
            near = np.isclose(got, (a - b) / (2 * h), rtol=1e-3, atol=1e-3)
            # The second derivative jumps at the ends of corners: a difference across one is off there.
            assert near.mean() > 0.97, (k, np.asarray(got)[~near], np.asarray((a - b) / (2 * h))[~near])


def test_ratings_and_priorities_hold():
    rng = np.random.default_rng(0)
    for priority in ("reactive", "minimum", "active"):
        rule = Rule(mode="constant reactive power", priority=priority, most_injected=0.9, most_absorbed=0.9)
        s = settings(der.feeder(np.full(50, 100.0), np.full(50, 100.0)), rule)
        p, q = jnp.asarray(rng.uniform(-100, 100, 50)), jnp.asarray(rng.uniform(-120, 120, 50))
        kw, kvar = respond(s, jnp.ones(50), p, q, None)
        assert (np.hypot(kw, kvar) <= 100 * (1 + 1e-12)).all() and (np.abs(kw) <= np.abs(p) + 1e-9).all()
        over = np.hypot(p, q) > 100
        kept = {"reactive": (kvar, np.clip(q, -90, 90)), "active": (kw, p)}
        if priority in kept:
            np.testing.assert_allclose(*kept[priority], atol=1e-9)
        else:
            assert (np.abs(kvar)[over] >= np.minimum(np.abs(q)[over], 44) - 1e-9).all()


def test_bad_rules_are_refused():
    feeder = der.feeder([10.0], [10.0])
    for rule, match in (
        (Rule(mode="volts"), "pv0.*choose one of none"),
        (Rule(category="C"), "choose one of A, B"),
        (Rule(volt_var=((0.9, 1.0, 1.0, 1.1), (0.4, 0.1, 0.0, -0.4))), "may not jump"),
        (Rule(volt_watt_curve=((1.06,), (1.0,))), "two rows of 2"),
        (Rule(power_factor=0.0), "power factor"),
        (Rule(most_injected=1.4), "magnitudes"),
        (Rule(droop=(0.0, 0.05)), "positive droop"),
    ):
        with pytest.raises(ValueError, match=match):
            settings(feeder, rule)
    with pytest.raises(ValueError, match="0 generating units"):
        settings(feeder, {"pv7": Rule()})
    with pytest.raises(ValueError, match="smooth"):
        settings(feeder, Rule(), smooth=-1.0)


def test_units_without_a_rule_are_left_alone():
    s = settings(der.feeder([10.0, 10.0], [10.0, 10.0]), {"pv1": Rule()})
    kw, kvar = respond(s, jnp.array([1.1, 1.1]), jnp.array([12.0, 5.0]), jnp.array([9.0, 0.0]), None)
    np.testing.assert_allclose(kw, [12.0, 5.0])
    np.testing.assert_allclose(kvar, [9.0, -4.4])
