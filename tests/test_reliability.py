"""Reliability indices against hand calculation, the textbook's example and OpenDSS's RelCalc."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax.reliability import (
    Outages,
    Radial,
    daily_saidi,
    expected,
    major_event_threshold,
    of_log,
    of_rollout,
    without_days,
)

CUSTOMERS, KW = jnp.array([100.0, 50.0, 350.0]), jnp.array([400.0, 100.0, 500.0])


def log(*rows, padding=2):
    point, start, minutes = zip(*rows, *[(0, 0.0, 0.0)] * padding, strict=True)
    return Outages(jnp.array(point), jnp.array(start, float), jnp.array(minutes, float))


def test_a_log_by_hand():
    outages = log((0, 1.0, 30.0), (1, 1.0, 90.0), (2, 30.0, 2.0), (0, 50.0, 5.0), (0, 60.0, 5.1))
    found = jax.jit(of_log)(outages, CUSTOMERS, KW, 8760.0)
    minutes = 100 * 30 + 50 * 90 + 100 * 5.1
    want = {
        "saifi": 250 / 500, "saidi_h": minutes / 500 / 60, "caidi_h": minutes / 250 / 60,
        "asai": 1 - minutes / 60 / (500 * 8760), "maifi": 450 / 500, "maifi_e": 450 / 500, "caifi": 250 / 150,
        "ctaidi_h": minutes / 150 / 60, "asifi": 900 / 1000, "asidi_h": (400 * 35.1 + 100 * 90) / 60 / 1000,
        "ens_kwh": (400 * 40.1 + 100 * 90 + 500 * 2) / 60, "aens_kwh": (400 * 40.1 + 100 * 90 + 500 * 2) / 60 / 500,
    }  # fmt: skip
    for name, value in want.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-12), name


def test_momentary_interruptions_make_events_within_five_minutes_of_the_first():
    minute = 1 / 60
    rows = [
        *((0, 1.0 + k * minute, 0.5) for k in (0, 2, 4)),  # one event
        (0, 1.0 + 6 * minute, 0.5),  # another: six minutes after the first
        *((1, 5.0 + k * minute, 0.5) for k in (0, 2)), (1, 5.0 + 4 * minute, 60.0),  # it locks out: none
        (2, 1.0, 0.5),
    ]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(rows))
    found = of_log(log(*(rows[k] for k in order)), CUSTOMERS, KW, 24.0)
    assert float(found.maifi) == pytest.approx((4 * 100 + 2 * 50 + 350) / 500)
    assert float(found.maifi_e) == pytest.approx((2 * 100 + 350) / 500)
    assert float(found.saifi) == pytest.approx(50 / 500)


def test_nobody_interrupted_is_no_ratio():
    found = of_log(log((0, 0.0, 0.0)), CUSTOMERS, KW, 24.0)
    assert float(found.saifi) == 0 and float(found.asai) == 1 and float(found.maifi_e) == 0
    assert np.isnan(found.caidi_h) and np.isnan(found.caifi)


def test_major_event_days_leave_out_days_without_interruption():
    rng = np.random.default_rng(1)
    saidi = np.exp(rng.normal(-3.3, 1.9, 1826))  # alpha and beta of the order of the standard's example
    quiet = rng.random(1826) < 0.1
    logs = np.log(saidi[~quiet])
    want = np.exp(logs.mean() + 2.5 * logs.std(ddof=1))
    found = jax.jit(major_event_threshold)(jnp.asarray(np.where(quiet, 0.0, saidi)))
    assert float(found) == pytest.approx(want, rel=1e-12)
    assert float(major_event_threshold(jnp.array([0.0, 3.0, 3.0]))) == pytest.approx(3.0)
    assert np.isnan(major_event_threshold(jnp.array([0.0, 3.0])))


def test_a_day_has_what_begins_on_it():
    outages = log((0, 23.5, 120.0), (1, 25.0, 60.0), (2, 26.0, 3.0), padding=0)
    daily = daily_saidi(outages, CUSTOMERS, 2)
    np.testing.assert_allclose(daily, [100 * 120 / 500, 50 * 60 / 500])
    rest = of_log(without_days(outages, jnp.array([True, False])), CUSTOMERS, KW, 48.0)
    assert float(rest.saifi) == pytest.approx(0.1) and float(rest.maifi) == pytest.approx(0.7)


# R. Billinton and R. N. Allan (1996), chapter 7: four sections of the main with a lateral each; 0.1 and 0.2 faults a
# km and year, repaired in 4 and 2 hours, switched in half an hour.
MAIN, LATERALS = [True, False, False, False], [True] * 4
TEXTBOOK = {
    "nothing": (([*MAIN, *[False] * 4], [False] * 8, [False] * 8), (2.2, 6.0, 2.73, 84.0, 28.0, 0.999315)),
    "fuses": (([*MAIN, *LATERALS], [False] * 8, [False] * 8), (1.15, 3.91, 3.39, 54.8, 18.3, 0.999554)),
    "disconnects": (
        ([*MAIN, *LATERALS], [False, True, True, True, *[False] * 4], [False] * 8),
        (1.15, 2.58, 2.23, 35.2, 11.7, 0.999706),
    ),
    "a tie": (
        ([*MAIN, *LATERALS], [False, True, True, True, *[False] * 4], [False, False, False, True, *[False] * 4]),
        (1.15, 1.80, 1.56, 25.1, 8.4, 0.999795),
    ),
}


def textbook(protective, switch, tie):
    km = np.array([2, 1, 3, 2, 1, 3, 2, 1.0])
    none = np.zeros(4)
    return Radial(
        parent=jnp.array([-1, 0, 1, 2, 0, 1, 2, 3]), rate=jnp.asarray(km * np.repeat([0.1, 0.2], 4)),
        repair_h=jnp.repeat(jnp.array([4.0, 2.0]), 4), protective=jnp.array(protective), switch=jnp.array(switch),
        tie=jnp.array(tie), customers=jnp.asarray(np.append(none, [1000, 800, 700, 500])),
        kw=jnp.asarray(np.append(none, [5000, 4000, 3000, 2000])), switching_h=jnp.asarray(0.5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(expected)


@pytest.mark.parametrize("case", TEXTBOOK)
def test_the_textbook_s_radial_system(compiled, case):
    devices, (saifi, saidi, caidi, ens_mwh, aens, asai) = TEXTBOOK[case]
    found, often, long = compiled(textbook(*devices))
    assert float(found.saifi) == pytest.approx(saifi, abs=0.005)
    assert float(found.saidi_h) == pytest.approx(saidi, abs=0.0051)
    assert float(found.caidi_h) == pytest.approx(caidi, abs=0.005)
    assert float(found.ens_kwh) / 1e3 == pytest.approx(ens_mwh, abs=0.051)
    assert float(found.aens_kwh) == pytest.approx(aens, abs=0.051)
    assert float(found.asai) == pytest.approx(asai, abs=5e-7)
    if case == "disconnects":  # load point B, by hand
        assert float(often[5]) == pytest.approx(1.4) and float(long[5]) == pytest.approx(2.65)


def random_feeder(seed, n=12):
    """Three-phase sections in a tree, some with a protective device."""
    rng = np.random.default_rng(seed)
    parent = np.array([-1, *(rng.integers(0, k) for k in range(1, n))])
    protective = np.append(True, rng.random(n - 1) < 0.4)
    return Radial(
        parent=jnp.asarray(parent), rate=jnp.asarray(rng.uniform(0.05, 0.5, n)),
        repair_h=jnp.asarray(rng.uniform(1, 8, n)), protective=jnp.asarray(protective),
        switch=jnp.zeros(n, bool), tie=jnp.zeros(n, bool),
        customers=jnp.asarray(rng.integers(1, 60, n).astype(float)), kw=jnp.asarray(rng.uniform(20, 200, n)),
        switching_h=jnp.asarray(0.5),
    )  # fmt: skip


def relcalc(feeder):
    """SAIFI, SAIDI and SAIFI by power of OpenDSS's RelCalc for a line and a load for each section."""
    import dss

    engine = dss.DSS.NewContext()

    def command(text):
        engine.Text.Command = text

    command("clear")
    command("new circuit.r basekv=12.47 bus1=source r1=0 x1=0.0001")
    f = jax.tree.map(lambda a: np.asarray(a).tolist(), feeder)
    for k, p in enumerate(f.parent):
        near = "source" if p < 0 else f"b{p}"
        # RelCalc's rate is faultrate x pctperm/100 x length, in the line's own unit.
        rate = f.rate[k] / 0.8 / 2.5
        command(f"new line.l{k} bus1={near} bus2=b{k} length=2.5 units=km faultrate={rate} pctperm=80")
        command(f"edit line.l{k} repair={f.repair_h[k]}")
        command(f"new load.s{k} bus1=b{k} kv=12.47 kw={f.kw[k]} numcust={int(f.customers[k])}")
    command("new energymeter.m element=line.l0 terminal=1")
    for k in np.flatnonzero(f.protective):
        kind = "relay" if k == 0 else ("recloser", "fuse")[k % 2]
        command(f"new {kind}.d{k} monitoredobj=line.l{k} monitoredterm=1")
    for text in ("set voltagebases=[12.47]", "calcvoltagebases", "set controlmode=off", "solve", "relcalc"):
        command(text)
    meter = engine.ActiveCircuit.Meters
    assert meter.First == 1
    return meter.SAIFI, meter.SAIDI, meter.SAIFIKW


@pytest.mark.parametrize("seed", range(4))
def test_without_switching_it_is_opendss_s_relcalc(compiled, seed):
    feeder = random_feeder(seed)
    found, *_ = compiled(feeder)
    saifi, saidi, by_power = relcalc(feeder)
    assert float(found.saifi) == pytest.approx(saifi, rel=1e-9)
    assert float(found.saidi_h) == pytest.approx(saidi, rel=1e-9)
    assert float(found.asifi) == pytest.approx(by_power, rel=1e-9)


def test_what_lies_upstream_of_all_devices_counts_for_nothing_as_in_relcalc(compiled):
    feeder = dataclasses.replace(random_feeder(3), protective=jnp.arange(12) == 4)
    found, often, _ = compiled(feeder)
    assert float(found.saifi) == pytest.approx(relcalc(feeder)[0], rel=1e-9)
    assert float(often[0]) == 0


def test_expectations_have_derivatives():
    feeder = random_feeder(1)

    def saidi(rate):
        return expected(dataclasses.replace(feeder, rate=rate))[0].saidi_h

    slope, by = jax.jit(jax.grad(saidi))(feeder.rate), 1e-6
    nudge = by * (jnp.arange(12) == 5)
    up, down = (float(saidi(feeder.rate + sign * nudge)) for sign in (1, -1))
    assert float(slope[5]) == pytest.approx((up - down) / 2 / by, rel=1e-6)


def test_a_rollout_s_counts():
    info = {
        "customers_interrupted": jnp.array([[100.0, 0.0], [0.0, 50.0]]),
        "customers_momentary": jnp.array([[0.0, 350.0], [0.0, 0.0]]),
        "customer_minutes": jnp.array([[3000.0, 0.0], [3000.0, 1500.0]]),
        "energy_not_served_kwh": jnp.array([[10.0, 0.0], [10.0, 4.0]]),
    }
    found = of_rollout(info, CUSTOMERS, 0.5)
    assert float(found.saifi) == pytest.approx(75 / 500) and float(found.maifi) == pytest.approx(175 / 500)
    assert float(found.saidi_h) == pytest.approx(3750 / 60 / 500) and float(found.ens_kwh) == 12
    assert float(found.asai) == pytest.approx(1 - 3750 / 60 / 500)
