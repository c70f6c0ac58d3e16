"""What photovoltaics and batteries deliver, against the OpenDSS engine at nominal voltage."""

import dataclasses

import numpy as np
import pytest
from dss import DSS

from gridjax.feeder import PVSystem, Storage
from gridjax.generation import curve_value, idling_kw, pv_power, storage_power

EFFICIENCY = ((0.1, 0.2, 0.4, 1.0), (0.86, 0.9, 0.93, 0.97))
TEMPERATURE = ((0.0, 25.0, 75.0, 100.0), (1.2, 1.0, 0.8, 0.6))
PV = PVSystem("p", "head.1.2.3.0", 3, "wye", 12.47, kva=100.0, pmpp_kw=90.0)
BATTERY = Storage(
    "b",
    "head.1.2.3.0",
    3,
    "wye",
    12.47,
    kva=100.0,
    kw_rated=90.0,
    kwh_rated=400.0,
    kwh_stored=200.0,
)


def injected(element: str, *commands: str) -> np.ndarray:
    """kW and kvar that an element injects behind a source of no impedance to speak of."""
    for command in (
        "clear",
        "set defaultbasefrequency=60",
        "new circuit.c basekv=12.47 bus1=head mvasc3=1e9 mvasc1=1e9",
        *commands,
        "set tolerance=1e-10",
        "solve",
    ):
        DSS.Text.Command = command
    assert DSS.ActiveCircuit.SetActiveElement(element) >= 0
    return -np.asarray(DSS.ActiveCircuit.ActiveCktElement.TotalPowers)[:2]


def curve_command(name: str, curve) -> str:
    x, y = (" ".join(map(repr, row)) for row in curve)
    return f"new xycurve.{name} npts={len(curve[0])} xarray=[{x}] yarray=[{y}]"


def engine_pv(pv: PVSystem) -> np.ndarray:
    commands = []
    options = ""
    if pv.efficiency_curve:
        commands.append(curve_command("e", pv.efficiency_curve))
        options += " effcurve=e"
    if pv.power_curve:
        commands.append(curve_command("t", pv.power_curve))
        options += " p-tcurve=t"
    if pv.kvar_max is not None:
        options += f" kvarmax={pv.kvar_max!r}"
    if pv.kvar_max_abs is not None:
        options += f" kvarmaxabs={pv.kvar_max_abs!r}"
    commands.append(
        f"new pvsystem.p bus1=head kv={pv.kv!r} kva={pv.kva!r} pmpp={pv.pmpp_kw!r} "
        f"irradiance={pv.irradiance!r} temperature={pv.temperature_c!r} kvar={pv.kvar!r} "
        f"%pmpp={pv.pmpp_percent!r} %cutin={pv.cut_in_percent!r} %cutout={pv.cut_out_percent!r} "
        f"wattpriority={'y' if pv.watt_priority else 'n'}{options}"
    )
    return injected("pvsystem.p", *commands)


def random_pv(rng) -> PVSystem:
    kva = float(rng.uniform(10, 500))
    pmpp = kva * float(rng.uniform(0.6, 1.6))
    cut_out = float(rng.uniform(2, 25))
    return dataclasses.replace(
        PV,
        kva=kva,
        pmpp_kw=pmpp,
        irradiance=float(rng.uniform(0.02, 1.1)),
        temperature_c=float(rng.uniform(-20, 110)),
        power_curve=TEMPERATURE if rng.random() < 0.7 else None,
        efficiency_curve=EFFICIENCY if rng.random() < 0.7 else None,
        kvar=kva * float(rng.choice([0.0, rng.uniform(-1.2, 1.2)])),
        kvar_max=kva * float(rng.uniform(0.2, 1)) if rng.random() < 0.5 else None,
        kvar_max_abs=kva * float(rng.uniform(0.2, 1)) if rng.random() < 0.5 else None,
        pmpp_percent=float(rng.choice([100.0, rng.uniform(30, 100)])),
        cut_out_percent=cut_out,
        cut_in_percent=cut_out + float(rng.uniform(0, 15)),
        watt_priority=bool(rng.integers(2)),
    )


def branches(pv: PVSystem) -> set[str]:
    """Which of the rules bite; so that the draws are known to meet them all."""
    kw, kvar = pv_power(pv)
    met = {f"{pv.watt_priority=}"}
    met.add("off" if kw == 0 else "on")
    met.add("clipped" if np.isclose(kw, pv.pmpp_kw * pv.pmpp_percent / 100) else "unclipped")
    met.add("full" if np.isclose(np.hypot(kw, kvar), pv.kva) else "within")
    if kvar not in (pv.kvar, 0.0):
        met.add("less injected" if kvar > 0 else "less absorbed")
    return met


def test_pv_power_over_random_settings():
    met = set()
    for k in range(200):
        pv = random_pv(np.random.default_rng([1, k]))
        np.testing.assert_allclose(pv_power(pv), engine_pv(pv), rtol=1e-9, atol=1e-9 * pv.kva)
        met |= branches(pv)
    assert met == {
        "pv.watt_priority=True",
        "pv.watt_priority=False",
        *("off", "on", "clipped", "unclipped", "full", "within"),
        *("less injected", "less absorbed"),
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(irradiance=0.5), (45.0, 0.0)),
        (dict(irradiance=0.1, kvar=30.0), (0.0, 30.0)),
        (dict(irradiance=1.0, kvar=60.0), (80.0, 60.0)),
        (dict(irradiance=1.0, kvar=-60.0, watt_priority=True), (90.0, -np.sqrt(1900.0))),
        (dict(irradiance=2.0, pmpp_kw=120.0, kvar=30.0, watt_priority=True), (100.0, 0.0)),
        (dict(irradiance=0.5, kvar=-300.0, kvar_max=500.0), (0.0, -100.0)),
        (dict(irradiance=0.5, kvar=-80.0, kvar_max=50.0), (45.0, -50.0)),
        (dict(irradiance=0.5, kvar=80.0, kvar_max_abs=50.0), (45.0, 80.0)),
        (dict(irradiance=1.0, pmpp_percent=40.0), (36.0, 0.0)),
    ],
)
def test_pv_power_by_hand(changes, expected):
    np.testing.assert_allclose(pv_power(dataclasses.replace(PV, **changes)), expected, rtol=1e-12)


def test_curve_value():
    curve = ((0.0, 1.0, 3.0), (2.0, 4.0, 3.0))
    points = [-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0]
    assert [curve_value(curve, x) for x in points] == [0.0, 2.0, 3.0, 4.0, 3.5, 3.0, 2.0]
    assert curve_value(None, 7.0) == 1.0
    assert curve_value(((1.0,), (0.3,)), 7.0) == 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(kva=0.0), "kva"),
        (dict(pmpp_kw=-1.0), "pmpp_kw"),
        (dict(kvar_max_abs=-1.0), "magnitudes"),
        (dict(power_curve=((1.0, 1.0), (1.0, 2.0))), "power_curve"),
        (dict(efficiency_curve=((1.0, 2.0), (1.0,))), "efficiency_curve"),
    ],
)
def test_pv_refusals(changes, words):
    with pytest.raises(ValueError, match=f"PVSystem 'p'.*{words}"):
        pv_power(dataclasses.replace(PV, **changes))


def test_storage_power_is_the_terminals():
    """A discharging or charging battery moves its kW: the losses come off its energy."""
    for k in range(30):
        rng = np.random.default_rng([2, k])
        kw, kvar = float(rng.uniform(5, 120) * rng.choice([-1, 1])), float(rng.uniform(-100, 100))
        battery = dataclasses.replace(BATTERY, kw=kw, kvar=kvar, idling_percent=2.0)
        # The engine asks for a state and a share of the rating (over 100 it would take as given).
        state = "discharging %discharge" if kw > 0 else "charging %charge"
        share = min(100.0, 100 * abs(kw) / 90)
        theirs = injected(
            "storage.b",
            "new storage.b bus1=head kv=12.47 kva=100 kwrated=90 kwhrated=400 %stored=50 "
            f"%idlingkw=2 kvar={kvar!r} state={state}={share!r}",
        )
        np.testing.assert_allclose(storage_power(battery), theirs, rtol=1e-9, atol=1e-7)


def test_idling_battery():
    battery = dataclasses.replace(BATTERY, idling_percent=2.0, kvar=20.0)
    theirs = injected(
        "storage.b",
        "new storage.b bus1=head kv=12.47 kva=100 kwrated=90 kwhrated=400 %stored=50 %idlingkw=2 kvar=20 state=idling",
    )
    assert idling_kw(battery) == pytest.approx(-1.8, rel=1e-12)
    idle = dataclasses.replace(battery, kw=idling_kw(battery))
    np.testing.assert_allclose(storage_power(idle), theirs, rtol=1e-9)


def test_storage_refusals():
    with pytest.raises(ValueError, match=r"Storage 'b'.*kw_rated"):
        storage_power(dataclasses.replace(BATTERY, kw_rated=0.0))
