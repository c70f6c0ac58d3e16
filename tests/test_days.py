"""Synthetic days: every statistic that the modules state, against closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import every_element_feeder, two_bus_feeder
from scipy import stats

import gridjax
from gridjax import customers, days, variation, weather
from gridjax.control import charging
from gridjax.feeder import Bus, Generator, Load, PVSystem

LINE_KM = np.array([[0.0, 0.2, 1.5], [0.2, 0.0, 1.3], [1.5, 1.3, 0.0]])
MODEL = variation.factors(LINE_KM, common=0.2, near=0.5, reach_km=0.6, tau_h=(6.0, 2.0, 0.5))
KEYS = 3000


def within(sample, expected, n, errors=5.0):
    """Means of n independent draws agree with what they estimate, to some standard errors of a unit variance."""
    np.testing.assert_allclose(sample, expected, atol=errors * math.sqrt(2 / n))


# --- Variation. ---


@pytest.fixture(scope="module")
def two_days():
    """Rough and smooth variation of two days in hours, (kind, keys, 48, sites)."""
    keys = jax.random.split(jax.random.key(5), KEYS)

    @jax.jit
    def draw(keys):
        def one(key):
            numbers = jnp.array([100, 101])
            rough = jax.vmap(lambda d: variation.vary(key, MODEL, d, 24))(numbers)
            smooth = jax.vmap(lambda d: variation.vary(key, MODEL, d, 24, smooth=True))(numbers)
            return jnp.stack([rough, smooth]).reshape(2, 48, 3)

        return jnp.swapaxes(jax.vmap(one)(keys), 0, 1)

    return np.asarray(draw(keys))


@pytest.mark.parametrize("smooth", [False, True])
def test_variation_has_the_stated_mean_variance_and_correlations(two_days, smooth):
    z = two_days[int(smooth)]
    within(z.mean(axis=0), 0, KEYS)
    for lag in (0, 1, 3):
        for start in (2, 15):
            sample = np.einsum("ki,kj->ij", z[:, start], z[:, start + lag]) / KEYS
            within(sample, variation.correlation(MODEL, lag, smooth=smooth), KEYS)
    np.testing.assert_allclose(
        variation.correlation(MODEL, 0.0),
        0.2 + 0.5 * np.exp(-LINE_KM / 0.6) + 0.3 * np.eye(3),
        rtol=1e-12,
    )


def test_rough_variation_goes_on_over_midnight_and_smooth_begins_anew(two_days):
    rough, smooth = two_days
    for before, after in ((23, 24), (22, 25), (20, 26)):
        sample = np.einsum("ki,kj->ij", rough[:, before], rough[:, after]) / KEYS
        within(sample, variation.correlation(MODEL, after - before), KEYS)
    within(np.einsum("ki,kj->ij", smooth[:, 23], smooth[:, 24]) / KEYS, 0, KEYS)


def test_smooth_variation_crosses_levels_as_often_as_rice_says():
    model = variation.factors(np.zeros((1, 1)), common=0.4, near=0.6, reach_km=1.0, tau_h=(2.0, 0.25, 1.0))
    keys = jax.random.split(jax.random.key(0), 150)
    z = np.asarray(jax.jit(jax.vmap(lambda k: variation.vary(k, model, 0, 1440, smooth=True)))(keys))[..., 0]
    for level in (0.0, 1.2):
        found = np.sum((z[:, :-1] < level) & (z[:, 1:] >= level)) / (150 * 1439 / 60)
        assert found == pytest.approx(variation.crossings_per_hour(model, level), rel=0.05)


def test_low_rank_keeps_the_variance():
    d = np.abs(np.subtract.outer(np.arange(30.0), np.arange(30.0)))
    model = variation.factors(d, common=0.0, near=1.0, reach_km=20.0, tau_h=(1.0, 1.0, 1.0), rank=6)
    implied = variation.correlation(model, 0.0)
    assert model.mixing.shape == (30, 6)
    np.testing.assert_allclose(np.diag(implied), 1, rtol=1e-12)
    np.testing.assert_allclose(implied, np.exp(-d / 20), atol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(common=0.8), "sum <= 1"),
        (dict(reach_km=0.0), "reach_km"),
        (dict(tau_h=(60.0, 1.0, 1.0)), "time constants"),
        (dict(distance_km=np.array([[0.0, 1.0], [2.0, 0.0]])), "symmetric"),
    ],
)
def test_refused_factors(changes, words):
    given = dict(distance_km=LINE_KM, common=0.2, near=0.5, reach_km=0.6, tau_h=(6.0, 2.0, 0.5)) | changes
    with pytest.raises(ValueError, match=words):
        variation.factors(given.pop("distance_km"), **given)


# --- Sun and clouds. ---


def test_clear_sky_geometry():
    hours = (np.arange(24 * 60) + 0.5) / 60
    for latitude, n in ((40.0, 172), (40.0, 355), (-30.0, 10), (65.0, 172)):
        sun = np.asarray(weather.clear_sky(n, hours, latitude))
        declination = math.radians(23.45) * math.sin(2 * math.pi * (284 + n) / 365)
        half = math.degrees(math.acos(-math.tan(math.radians(latitude)) * math.tan(declination))) / 15
        assert np.sum(sun > 0) / 60 == pytest.approx(2 * half, abs=0.1)
        assert hours[np.argmax(sun)] == pytest.approx(12.0, abs=0.02)
        height = math.cos(math.radians(latitude) - declination)
        assert sun.max() == pytest.approx(1.098 * height * math.exp(-0.057 / height), rel=1e-4)
    assert float(weather.clear_sky(81, 12.0, 0.0)) == pytest.approx(1.098 * math.exp(-0.057), rel=1e-6)
    assert float(weather.clear_sky(172, 13.0, noon_hour=13.0)) == float(weather.clear_sky(172, 12.0))


SKY = weather.sky(variation.factors(LINE_KM, common=0.2, near=0.8, reach_km=1.8, tau_h=(0.5, 0.1, 0.1)))


def test_shade_averages_to_the_measured_clearness():
    """Kasten and Czeplak: 1 - 0.75 C^3.4."""
    z = jnp.asarray(stats.norm.ppf((np.arange(20000) + 0.5) / 20000))
    for cover in (0.2, 0.6, 0.9, 0.99):
        k = weather.through_clouds(SKY, jnp.asarray(cover), z)
        assert float(k.mean()) == pytest.approx(1 - 0.75 * cover**3.4, abs=1e-4)
        assert float(k.min()) >= 0.25 and float(k.max()) <= 1


def test_cover_of_days():
    """A probit of a chain of normals: its mean is a normal probability, summer is clearer, days remember."""
    cover = jax.jit(jax.vmap(jax.vmap(lambda k, n: weather.cloud_cover(k, SKY, n), (None, 0)), (0, None)))
    found = np.asarray(cover(jax.random.split(jax.random.key(1), KEYS), jnp.array([14, 15, 196])))
    for column, wave in ((0, 1.0), (2, math.cos(2 * math.pi * 182 / 365))):
        expected = stats.norm.cdf(0.3 * wave / math.sqrt(1 + 1.3**2))
        within(found[:, column].mean(), expected, KEYS, errors=2.0)
    level = stats.norm.ppf(found)
    assert np.corrcoef(level[:, 0], level[:, 1])[0, 1] == pytest.approx(0.3, abs=0.06)
    assert abs(np.corrcoef(level[:, 0], level[:, 2])[0, 1]) < 0.06


def test_ramps_are_those_of_two_normals():
    """P(|change of k in a minute| > x) from the correlation of z over a minute; neighbours ramp together."""
    keys = jax.random.split(jax.random.key(2), 60)
    z = jax.jit(jax.vmap(lambda k: variation.vary(k, SKY.clouds, 0, 1440, smooth=True)))(keys)
    k = np.asarray(weather.through_clouds(SKY, jnp.asarray(0.8), z))
    change = np.diff(k, axis=1)
    r = variation.correlation(SKY.clouds, 1 / 60, smooth=True)[0, 0]
    nodes = stats.norm.ppf((np.arange(1500) + 0.5) / 1500)
    one = np.asarray(weather.through_clouds(SKY, jnp.asarray(0.8), jnp.asarray(nodes)))[:, None]
    after = jnp.asarray(r * nodes[:, None] + math.sqrt(1 - r**2) * nodes)
    other = np.asarray(weather.through_clouds(SKY, jnp.asarray(0.8), after))
    for x in (0.1, 0.2):
        expected = np.mean(np.abs(other - one) > x)
        assert expected > 0.01
        assert np.mean(np.abs(change) > x) == pytest.approx(expected, rel=0.1)
    near, far = (np.corrcoef(change[..., 0].ravel(), change[..., j].ravel())[0, 1] for j in (1, 2))
    assert near > far + 0.1 > 0.2


# --- Wind. ---


def test_wind_is_weibull_and_remembers():
    wind = weather.wind(variation.factors(np.zeros((1, 1)), common=1.0, near=0.0, reach_km=1.0, tau_h=(12.0, 1.0, 1.0)))
    keys = jax.random.split(jax.random.key(3), KEYS)
    speed = np.asarray(jax.jit(jax.vmap(lambda k: weather.wind_speed(k, wind, 14, 4)))(keys))[..., 0]
    scale = 7 * 1.15
    assert speed.mean() == pytest.approx(scale * math.gamma(1.5), rel=0.03)
    assert stats.kstest(speed[:, 0], stats.weibull_min(2, scale=scale).cdf).pvalue > 1e-3
    z = stats.norm.ppf(stats.weibull_min(2, scale=scale).cdf(speed))
    assert np.corrcoef(z[:, 0], z[:, 1])[0, 1] == pytest.approx(math.exp(-6 / 12), abs=0.05)


def test_turbine_power():
    wind = weather.wind(MODEL)
    np.testing.assert_allclose(
        weather.turbine_power(wind, jnp.array([0.0, 3.0, 7.5, 12.0, 24.0, 26.0])),
        [0, 0, (7.5**3 - 27) / (12**3 - 27), 1, 1, 0],
    )


# --- Customers. ---

PEOPLE = customers.customers(MODEL, [0, 1, 0], [1, 20, 100])


def test_the_homes_year_is_the_standard_profiles():
    """Check values of the printed profile: F(1) = 1.2420, F(202) = 0.7847, F(365) = 1.2572."""
    f = np.polynomial.polynomial.polyval(np.array([1, 202, 365]), customers.H0)
    np.testing.assert_allclose(f, [1.2420, 0.7847, 1.2572], atol=6e-5)
    season = customers.standard_seasons()[0]
    np.testing.assert_allclose(season[0] / season[201], f[0] / f[1], rtol=1e-12)


def test_the_mean_course_has_a_mean_of_one_and_weekends():
    week = np.asarray(jax.jit(jax.vmap(lambda d: customers.mean_course(PEOPLE, d, 48)))(jnp.arange(364)))
    np.testing.assert_allclose(week.mean(axis=(0, 1)), 1, atol=2e-3)
    shop = week[..., 1].mean(axis=1).reshape(52, 7).mean(axis=0)
    assert shop[6] < shop[5] < 0.8 * shop[0]
    home = week[:7, :, 0]
    assert home[0].argmax() in (38, 39) and home[5, :24].argmax() > home[0, :24].argmax()
    flat = customers.customers(MODEL, [0] * 3, [1] * 3, weeks=np.arange(168.0)[None], seasons=np.ones((1, 365)))
    course = np.asarray(jax.jit(lambda: customers.mean_course(flat, 2, 24))())[:, 0]
    np.testing.assert_allclose(course * 83.5, 48 + np.arange(24), rtol=1e-12)


def test_demand_varies_as_stated():
    keys = jax.random.split(jax.random.key(4), KEYS)
    found = np.asarray(jax.jit(jax.vmap(lambda k: customers.demand(k, PEOPLE, 30, 6)))(keys))
    factor = found / np.asarray(jax.jit(lambda: customers.mean_course(PEOPLE, 30, 6))())
    cv = np.sqrt(0.9**2 / np.array([1, 20, 100]) + 0.05**2)
    np.testing.assert_allclose(factor.mean(axis=0), 1, atol=5 * 0.9 / math.sqrt(KEYS))
    np.testing.assert_allclose(factor.std(axis=0).mean(axis=0), cv, rtol=0.05)
    # A log-normal's heavy tail makes sample covariances unreliable; its logarithm is normal.
    sigma = np.sqrt(np.log1p(cv**2))
    z = (np.log(factor) + sigma**2 / 2) / sigma
    for lag in (0, 1):
        within(z[:, 2].T @ z[:, 2 + lag] / KEYS, variation.correlation(MODEL, 4.0 * lag), KEYS)


FLEET = customers.cars(np.zeros(4000, int), kw=7.4, plug_in=0.6)


def test_cars_come_leave_and_want_as_stated():
    stay = customers.stays(jax.random.key(6), FLEET, 12)
    plugged = np.asarray(stay.wanted_kwh) > 0
    assert plugged.mean() == pytest.approx(0.6, abs=0.03)
    arrival, departure = np.asarray(stay.arrival_hour), np.asarray(stay.departure_hour)
    inside = (arrival > 0) & (arrival < 24)
    cut = stats.truncnorm(-17.6 / 3.4, 6.4 / 3.4, 17.6, 3.4)
    assert stats.kstest(arrival[inside], cut.cdf).pvalue > 1e-3
    assert stats.kstest(departure[plugged & (departure > arrival)] - 24, stats.norm(7.5, 1.5).cdf).pvalue > 1e-3
    wanted = np.asarray(stay.wanted_kwh)[plugged]
    assert stats.kstest(wanted[wanted < 60] / 0.3, stats.lognorm(0.88, scale=math.exp(3.2)).cdf).pvalue > 1e-4
    assert (departure[~plugged] == arrival[~plugged]).all()


def test_uncontrolled_cars_are_those_charged_at_once():
    """The closed form of a day is the sessions of two days, charged step by step; energies add up over days."""
    key, fleet = jax.random.key(7), customers.cars(np.arange(30), kw=3.7)

    @jax.jit
    def charged(day, shift):
        stay = customers.moved(customers.stays(key, fleet, day), shift)

        def step(state, _):
            kw, state, _ = charging.charge(stay, state, charging.at_once(stay, state, 0.5), 0.5)
            return state, kw

        # What a car has charged before midnight is done: the clock begins a day before.
        return jax.lax.scan(step, charging.initial(stay, -24.0), None, length=96)[1][48:]

    kw = jax.jit(lambda: customers.uncontrolled(key, fleet, 5, 48))()
    np.testing.assert_allclose(kw, charged(4, -24.0) + charged(5, 0.0), atol=1e-9)


# --- Days of a feeder. ---


def test_a_feeders_day():
    feeder = every_element_feeder()
    grid = gridjax.compile(feeder)
    fleet = customers.cars([0, 0, 2])
    wind = (feeder.generators[0].name,) if feeder.generators else ()
    region = days.region(feeder, wind_generators=wind, cars=fleet, first_weekday=3)
    point = days.at_full_sun(feeder, grid.nominal)
    key = jax.random.key(1)
    draw = jax.jit(jax.vmap(lambda n: days.day(key, region, point, n, 24)))
    one = jax.tree.map(lambda a: a[1], draw(jnp.array([3, 200])))
    assert one.load_kw.shape == (24, len(feeder.loads))
    np.testing.assert_allclose(one.hour, 4800.5 + np.arange(24))
    shapes = jax.jit(lambda: days.shapes(key, region, 199, 24, 2))()
    cars = jax.jit(lambda: customers.uncontrolled(days.car_key(key), fleet, 200, 24))()
    load = np.asarray(point.load_kw) * np.asarray(shapes.p)[24:, : len(feeder.loads)]
    load[:, 0] += np.asarray(cars[:, :2].sum(axis=1))
    load[:, 2] += np.asarray(cars[:, 2])
    np.testing.assert_allclose(one.load_kw, load, rtol=1e-12)
    np.testing.assert_allclose(one.load_kvar[:, 1] * point.load_kw[1], one.load_kw[:, 1] * point.load_kvar[1])
    first = len(feeder.generators)
    pv = np.asarray(one.generation_kw)[:, first : first + len(feeder.pv_systems)]
    assert (pv[:5] == 0).all() and (pv[10:14] > 0).all()
    np.testing.assert_array_equal(
        one.generation_kw[:, first + len(feeder.pv_systems) :],
        np.broadcast_to(point.generation_kw[first + len(feeder.pv_systems) :], (24, len(feeder.storages))),
    )


def test_groups_share_columns_by_kind_and_nearness():
    feeder = two_bus_feeder()
    buses = tuple(Bus(f"n{k}", feeder.buses[0].base_kv, (1, 2, 3)) for k in range(6))
    lines = tuple(
        dataclasses.replace(
            feeder.lines[0], name=f"m{k}", bus1=f"{'b' if k == 0 else f'n{k - 1}'}.1.2.3", bus2=f"n{k}.1.2.3"
        )
        for k in range(6)
    )
    loads = tuple(Load(f"d{k}", f"n{k}.1.2.3.0", 3, "wye", 1, 4.16, 10.0, 3.0) for k in range(6))
    feeder = feeder.replace(buses=feeder.buses + buses, lines=feeder.lines + lines, loads=loads)
    d = days.distances_km(feeder, ["n0", "n5", "n0", "a"])
    np.testing.assert_allclose(d, [[0, 5, 0, 2], [5, 0, 5, 7], [0, 5, 0, 2], [2, 7, 2, 0]], atol=1e-6)
    region = days.region(feeder, groups=3, kind=[0, 0, 0, 0, 1, 1])
    of = region.kinds.load
    assert len(region.kinds.actual) == 3
    assert of[0] == of[1] != of[3] == of[2] and of[4] == of[5] not in of[:4]


def test_refused_regions():
    feeder = two_bus_feeder()
    with pytest.raises(ValueError, match="no generators nowhere"):
        days.region(feeder, wind_generators=("nowhere",))
    with pytest.raises(ValueError, match="no loads"):
        days.region(feeder.replace(loads=()))
    with pytest.raises(ValueError, match="kind 7"):
        days.region(feeder, kind=7)
    with pytest.raises(ValueError, match="no habit"):
        customers.cars([0], colour=3)


def test_a_clear_day_through_a_small_inverter_in_float32():
    feeder = two_bus_feeder().replace(
        pv_systems=(PVSystem("p", "b.1.2.3.0", 3, "wye", 4.16, kva=50.0, pmpp_kw=80.0),),
        generators=(Generator("w", "b.1.2.3.0", 3, "wye", 4.16, 100.0, 0.0),),
    )

    def narrow(a):
        return a.astype(jnp.float32) if a.dtype == jnp.float64 else a

    region = days.region(feeder, wind_generators=("w",))
    assert float(region.oversize[0]) == pytest.approx(1.6)
    region = dataclasses.replace(region, sky=dataclasses.replace(region.sky, cover=jnp.asarray(-20.0)))
    region = jax.tree.map(narrow, region)
    point = jax.tree.map(narrow, days.at_full_sun(feeder, gridjax.compile(feeder).nominal))
    profiles = jax.jit(lambda k: days.day(k, region, point, 171, 1440))(jax.random.key(0))
    for leaf in jax.tree.leaves(profiles):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    sun = np.asarray(weather.clear_sky(172, (np.arange(1440) + 0.5) / 60))
    np.testing.assert_allclose(profiles.generation_kw[:, 1], np.minimum(80 * sun, 50), atol=0.05)
    assert np.min(profiles.generation_kw[:, 0]) >= 0 and np.max(profiles.generation_kw[:, 0]) <= 100
