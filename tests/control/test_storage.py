"""Batteries: balance, limits, derivatives, wear, and OpenDSS's Storage over a day."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dss import DSS
from hypothesis import given, settings
from hypothesis import strategies as st

from gridjax.control import storage
from gridjax.feeder import Bus, Feeder, Generator, Source, Storage

RECORD = Storage(
    "b",
    "head.1.2.3.0",
    3,
    "wye",
    12.47,
    kva=100.0,
    kw_rated=90.0,
    kwh_rated=400.0,
    kwh_stored=200.0,
    charge_efficiency_percent=88.0,
    discharge_efficiency_percent=93.0,
    idling_percent=2.0,
)


def feeder_of(*records: Storage) -> Feeder:
    return Feeder(
        "f",
        60.0,
        (Bus("head", 12.47 / 3**0.5, (1, 2, 3)),),
        (Source("s", "head.1.2.3", 12.47),),
        generators=(Generator("g", "head.1.2.3.0", 3, "wye", 12.47, 10.0, 0.0),),
        storages=records,
    )


def settings_of(*changes: dict, **options) -> storage.Storages:
    records = [dataclasses.replace(RECORD, name=f"b{k}", **c) for k, c in enumerate(changes or ({},))]
    return storage.storages(feeder_of(*records), **options)


def run(s, kw, kvar=None, hours=1.0, state=None):
    """A sequence of requests (steps, n); all powers, energies (steps, n) and books."""
    kw = jnp.asarray(kw)
    requests = storage.Power(kw, jnp.zeros_like(kw) if kvar is None else jnp.asarray(kvar))

    def step(state, request):
        power, state, books = storage.operate(s, state, request, hours)
        return state, (power, state.kwh, books)

    return jax.lax.scan(step, storage.initial(s) if state is None else state, requests)[1]


# --- OpenDSS. ---

DAY = (0.3, -0.5, 0, 0.8, -0.005, 0.2, 0.05, 0, -1, -1, -0.95, -0.4, -0.02, 0.2, 0, 0.01, -0.02, 0.5, 0.25, -0.6)
EXHAUSTING = (0.3, 0.8, 1, 1, 1, 0.5, -1, -1, -1, -1, -1, -1, -0.5, 0.4)


def engine_day(multipliers, minutes=60, kvar=0.0, changes=""):
    """kW at the terminal, kvar and kWh after each step of the engine's Storage that follows a shape."""
    for command in (
        "clear",
        "set defaultbasefrequency=60",
        "new circuit.c basekv=12.47 bus1=head mvasc3=1e9 mvasc1=1e9",
        f"new loadshape.s npts={len(multipliers)} minterval={minutes} mult=[{' '.join(map(repr, multipliers))}]",
        "new storage.b bus1=head kv=12.47 kva=100 kwrated=90 kwhrated=400 %stored=50 %reserve=20 %idlingkw=2 "
        f"%effcharge=88 %effdischarge=93 dispmode=follow daily=s kvar={kvar} {changes}",
        "set tolerance=1e-12",
        f"set mode=daily stepsize={minutes}m number=1",
    ):
        DSS.Text.Command = command
    rows = []
    circuit = DSS.ActiveCircuit
    for _ in multipliers:
        circuit.Solution.Solve()
        circuit.SetActiveElement("storage.b")
        p, q = circuit.ActiveCktElement.TotalPowers[:2]
        circuit.Storages.Name = "b"
        rows.append((-p, -q, circuit.Storages.puSOC * 400))
    return np.array(rows).T


def asked(s, multipliers):
    """The engine's requests: 0 is to idle."""
    m = np.array(multipliers, float)[:, None]
    return np.where(m == 0, -np.asarray(s.idling_kw), m * np.asarray(s.kw_rated))


@pytest.mark.parametrize("minutes", [60, 15])
def test_a_day_is_the_engines(minutes):
    s = settings_of()
    power, kwh, books = run(s, asked(s, DAY), hours=minutes / 60)
    kw, _, stored = engine_day(DAY, minutes)
    np.testing.assert_allclose(power.kw[:, 0], kw, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kwh[:, 0], stored, rtol=1e-6)
    # The engine's idling losses are what its terminal and its store leave over, beside the conversion's.
    gone = -np.diff(stored, prepend=200.0) - kw * minutes / 60
    ours = books.idling_loss_kwh + books.charging_loss_kwh + books.discharging_loss_kwh
    np.testing.assert_allclose(ours[:, 0], gone, atol=1e-6)


def test_with_reactive_power_active_backs_off_as_in_the_engine():
    s = settings_of()
    kvar = np.full((len(DAY), 1), 70.0)
    power, kwh, _ = run(s, asked(s, DAY), kvar)
    kw, theirs, stored = engine_day(DAY, kvar=70.0)
    np.testing.assert_allclose(power.kvar[:, 0], theirs, rtol=1e-6)
    np.testing.assert_allclose(power.kw[:, 0], kw, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kwh[:, 0], stored, rtol=1e-6)
    assert np.abs(power.kw).max() == pytest.approx(np.sqrt(100**2 - 70**2))


def test_only_where_the_energy_ends_within_a_step_the_engine_differs():
    """There it moves the whole step's power, cuts the energy off at its limit and so makes or loses energy."""
    s = settings_of()
    power, kwh, _ = run(s, asked(s, EXHAUSTING))
    kw, _, stored = engine_day(EXHAUSTING)
    np.testing.assert_allclose(kwh[:, 0], stored, rtol=1e-6)
    at_limit = np.isclose(stored, 80) | np.isclose(stored, 400)
    ends = at_limit & ~np.concatenate([[False], at_limit[:-1]])
    assert ends.sum() == 2
    np.testing.assert_allclose(power.kw[~ends, 0], kw[~ends], rtol=1e-6, atol=1e-6)
    gained = -np.diff(stored, prepend=200.0)
    direct = np.array(power.kw[:, 0]) + 1.8
    np.testing.assert_allclose(np.where(direct > 0, direct / 0.93, direct * 0.88), gained, rtol=1e-6, atol=1e-4)
    assert (np.abs(kw[ends]) > np.abs(power.kw[ends, 0]) + 1).all()


# --- Books and limits. ---


def balance(books):
    """What is left over of each step, kWh."""
    losses = books.charging_loss_kwh + books.discharging_loss_kwh + books.idling_loss_kwh
    return books.drawn_kwh - books.delivered_kwh - books.stored_kwh - losses


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    efficiency=st.integers(1, 100),
    idling=st.integers(0, 50),
    reserve=st.integers(0, 100),
    stored=st.integers(0, 100).map(lambda percent: percent / 100),
    hours=st.sampled_from([1 / 3600, 1 / 60, 0.25, 1.0]),
    watt=st.booleans(),
)
def test_books_balance_and_limits_hold(seed, efficiency, idling, reserve, stored, hours, watt):
    s = settings_of(
        dict(
            charge_efficiency_percent=efficiency,
            discharge_efficiency_percent=101 - efficiency,
            idling_percent=idling,
            reserve_percent=reserve,
            kwh_stored=400 * stored,
        ),
        watt_priority=watt,
    )
    rng = np.random.default_rng(seed)
    kw = rng.normal(0, 80, (24, 1)) * 10 ** rng.uniform(-1, 2)
    kvar = rng.normal(0, 60, (24, 1))
    power, kwh, books = jax.tree.map(np.asarray, jitted(s, kw, kvar, hours))
    np.testing.assert_allclose(balance(books), 0, atol=1e-9)
    floor = min(400 * stored, float(s.kwh_reserve[0]))
    assert (np.asarray(kwh) >= floor).all() and (np.asarray(kwh) <= 400).all()
    before = np.concatenate([[[400 * stored]], kwh[:-1]])
    assert not ((kwh < before) & (before <= float(s.kwh_reserve[0]))).any()
    assert (np.hypot(power.kw, power.kvar) <= 100 * (1 + 1e-12)).all()
    assert (np.abs(power.kw) <= 90 * (1 + 1e-12)).all()
    np.testing.assert_allclose(books.refused_kw, kw - power.kw, atol=1e-9)


@jax.jit
def jitted(s, kw, kvar, hours):
    return run(s, kw, kvar, hours)


def test_a_request_within_the_limits_is_met():
    s = settings_of()
    power, _, books = run(s, [[30.0], [-40.0], [0.0]], [[10.0], [-20.0], [5.0]])
    np.testing.assert_array_equal(power.kw, [[30.0], [-40.0], [0.0]])
    np.testing.assert_array_equal(power.kvar, [[10.0], [-20.0], [5.0]])
    np.testing.assert_array_equal(books.refused_kw, 0)


def test_a_refused_request_is_the_nearest_possible():
    """No possible power is nearer: a little further and the energy is beyond its limit."""
    s = settings_of()
    for kwh, kw in ((85.0, 60.0), (395.0, -60.0)):
        state = storage.StorageState(jnp.array([kwh]))
        power, after, _ = storage.operate(s, state, storage.Power(jnp.array([kw]), jnp.zeros(1)), 1.0)
        limit = 80.0 if kw > 0 else 400.0
        assert float(after.kwh[0]) == limit
        further = float(power.kw[0]) + 1e-6 * np.sign(kw) + 1.8
        assert abs(kwh - (further / 0.93 if further > 0 else further * 0.88) - limit) > 1e-7


def test_idling_keeps_the_energy_and_below_the_reserve_nothing_comes_out():
    s = settings_of({}, dict(kwh_stored=50.0))
    power, state, _ = storage.operate(s, storage.initial(s), storage.idle(s), 1.0)
    np.testing.assert_array_equal(state.kwh, [200.0, 50.0])
    power, state, _ = storage.operate(s, state, storage.Power(jnp.full(2, 90.0), jnp.zeros(2)), 0.25)
    np.testing.assert_allclose(power.kw, [90.0, -1.8])
    assert float(state.kwh[1]) == 50.0


def test_watt_priority_cuts_the_reactive_power():
    request = storage.Power(jnp.array([90.0]), jnp.array([-80.0]))
    for watt, expected in ((False, (60.0, -80.0)), (True, (90.0, -np.sqrt(1900.0)))):
        s = settings_of(watt_priority=watt)
        power, _, _ = storage.operate(s, storage.initial(s), request, 0.1)
        np.testing.assert_allclose((power.kw[0], power.kvar[0]), expected)


# --- Transforms. ---


def test_derivatives_are_those_of_differences():
    s = settings_of(replacement_cost=300.0, throughput_cost=0.05)
    kw = np.array([[50.0], [-30.0], [95.0], [-80.0], [40.0]])  # the third meets the rating

    @jax.jit
    def value(kw, s):
        power, kwh, books = run(s, kw)
        return jnp.sum(power.kw**2) + 3 * kwh[-1, 0] + jnp.sum(books.wear_cost) + jnp.sum(books.stored_kwh**2)

    by_request, by_rating = jax.jit(jax.grad(lambda kw, r: value(kw, s.replace(kw_rated=r)), (0, 1)))(kw, s.kw_rated)
    for k in range(len(kw)):
        e = np.zeros_like(kw)
        e[k] = 1e-4
        difference = float(value(kw + e, s) - value(kw - e, s)) / 2e-4
        assert float(by_request[k, 0]) == pytest.approx(difference, rel=1e-6, abs=1e-6)
    up, down = (value(kw, s.replace(kw_rated=s.kw_rated + d)) for d in (1e-4, -1e-4))
    assert float(by_rating[0]) == pytest.approx(float(up - down) / 2e-4, rel=1e-6)


def test_derivatives_are_finite_at_the_corners():
    s = settings_of(dict(idling_percent=0.0, kwh_stored=400.0), replacement_cost=300.0)

    @jax.jit
    def slopes(kw, kvar):
        def value(kw, kvar):
            power, state, books = storage.operate(s, storage.initial(s), storage.Power(kw, kvar), 0.5)
            return jnp.sum(power.kw + power.kvar + state.kwh + books.wear_cost)

        return jax.grad(value, (0, 1))(kw, kvar)

    for kw, kvar in ((0.0, 100.0), (90.0, 200.0), (-90.0, 0.0), (0.0, 0.0)):
        assert np.isfinite(slopes(jnp.array([kw]), jnp.array([kvar]))).all()


def test_vmap_is_a_loop_and_jit_is_eager():
    s = settings_of({}, dict(kwh_stored=90.0))
    rng = np.random.default_rng(0)
    states = storage.StorageState(jnp.asarray(rng.uniform(80, 400, (5, 2))))
    requests = storage.Power(jnp.asarray(rng.normal(0, 90, (5, 2))), jnp.asarray(rng.normal(0, 50, (5, 2))))
    batch = jax.jit(jax.vmap(lambda state, request: storage.operate(s, state, request, 0.5)))(states, requests)
    for k in range(5):
        one = storage.operate(s, *jax.tree.map(lambda a, k=k: a[k], (states, requests)), 0.5)
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-14, atol=1e-12)


def test_float32_keeps_the_limits():
    s = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, settings_of())
    kw = np.random.default_rng(1).normal(0, 200, (200, 1)).astype(np.float32)
    power, kwh, _ = jitted(s, kw, np.zeros_like(kw), np.float32(0.5))
    assert kwh.dtype == power.kw.dtype == jnp.float32
    assert (np.asarray(kwh) >= np.float32(80)).all() and (np.asarray(kwh) <= np.float32(400)).all()


# --- Wear, settings. ---


def test_wear_of_cycles_from_full():
    """A cycle to any depth costs a D^b of a battery, however many steps it takes."""
    s = settings_of(replacement_cost=250.0)
    for depth, steps in ((1.0, 1), (0.6, 7), (0.1, 3)):
        path = 400 * (1 - depth * np.concatenate([np.linspace(0, 1, steps + 1), np.linspace(1, 0, steps + 1)[1:]]))
        cost = sum(float(storage.wear_cost(s, jnp.array([a]), jnp.array([b]))[0]) for a, b in itertools.pairwise(path))
        assert cost == pytest.approx(250 * 400 * 5.24e-4 * depth**2.03, rel=1e-12)
    s = settings_of(throughput_cost=0.1)
    assert float(storage.wear_cost(s, jnp.array([300.0]), jnp.array([280.0]))[0]) == pytest.approx(2.0)


def test_settings_come_from_the_feeder():
    s = settings_of({}, dict(kwh_rated=50.0, kwh_stored=10.0, reserve_percent=10.0))
    np.testing.assert_array_equal(s.row, [1, 2])
    np.testing.assert_allclose(s.kwh_reserve, [80.0, 5.0])
    np.testing.assert_allclose(s.idling_kw, 1.8)
    np.testing.assert_allclose(storage.initial(s, 0.5).kwh, [200.0, 25.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(kwh_rated=0.0, kwh_stored=0.0), "kwh_rated above 0"),
        (dict(kwh_stored=500.0), "outside 0 to kwh_rated"),
        (dict(reserve_percent=120.0), "reserve_percent"),
        (dict(charge_efficiency_percent=0.0), "charge_efficiency_percent"),
        (dict(discharge_efficiency_percent=101.0), "discharge_efficiency_percent"),
        (dict(idling_percent=150.0), "idling_percent"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(ValueError, match=f"Storage 'b0'.*{words}"):
        settings_of(changes)


def test_refused_wear():
    with pytest.raises(ValueError, match="exponent"):
        settings_of(exponent=0.5)


def test_place_puts_the_power_at_its_entries():
    import gridjax

    feeder = feeder_of(RECORD, dataclasses.replace(RECORD, name="c"))
    point = gridjax.compile(feeder).nominal
    s = storage.storages(feeder)
    out = storage.place(point, s, storage.Power(jnp.array([5.0, -6.0]), jnp.array([1.0, 2.0])))
    np.testing.assert_array_equal(out.generation_kw, [10.0, 5.0, -6.0])
    np.testing.assert_array_equal(out.generation_kvar, [0.0, 1.0, 2.0])
