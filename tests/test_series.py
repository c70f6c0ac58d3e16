"""Time series against OpenDSS's daily mode, and what `simulate` promises."""

import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax.control.storage import storages
from gridjax.control.switching import switching
from gridjax.feeder import Storage
from gridjax.profiles import Kinds, Shapes
from gridjax.series import Controls, energies, simulate, simulate_long

HOURS = np.arange(1, 25)
DAY = 0.55 + 0.35 * np.sin((HOURS - 9) / 24 * 2 * np.pi) + 0.1 * np.cos(HOURS)


def one_shape(grid, values, hours=None):
    """All loads follow one shape."""
    kinds = Kinds(
        load=(0,) * grid.nominal.load_kw.shape[0],
        generation=(-1,) * grid.nominal.generation_kw.shape[0],
        actual=(False,),
    )
    column = jnp.asarray(values)[:, None]
    hours = jnp.arange(1.0, len(values) + 1) if hours is None else hours
    return Shapes(p=column, q=column, hour=hours, kinds=kinds)


def in_opendss(feeder, mode):
    """Source kW, losses in kW, taps and capacitor states, each with 24 rows, by the engine's daily mode."""
    import dss

    engine = dss.DSS.NewContext()
    engine.AllowChangeDir = False
    command = engine.Text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feeder.dss"
        gridjax.write_opendss(feeder, path)
        command.Command = f'redirect "{path}"'
    shape = " ".join(map(repr, map(float, DAY)))
    for line in (
        f"new loadshape.day npts=24 interval=1 mult=[{shape}]",
        "batchedit load..* daily=day",
        "set tolerance=1e-9",
        "set maxiterations=500",
        "set mode=daily number=1 stepsize=1h hour=0",
        f"set controlmode={mode}",
        "set maxcontroliter=100",
    ):
        command.Command = line
    circuit, rows = engine.ActiveCircuit, []
    for _ in HOURS:
        circuit.Solution.Solve()
        taps, steps = [], []
        for regulator in feeder.regulators:
            circuit.Transformers.Name = regulator.transformer
            circuit.Transformers.Wdg = regulator.winding
            taps.append(circuit.Transformers.Tap)
        for bank in feeder.capacitors:
            circuit.Capacitors.Name = bank.name
            steps += list(circuit.Capacitors.States)
        rows.append((-circuit.TotalPower[0], circuit.Losses[0] / 1e3, taps, steps))
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("name", "mode"), [("ieee13", "time"), ("ieee34", "static"), ("ieee123", "static"), ("ieee123", "time")]
)
@pytest.mark.filterwarnings("ignore:feeder 'ieee34'")
def test_a_day_is_opendss_s(name, mode):
    feeder = gridjax.feeders.load(name)
    grid = gridjax.compile(feeder)
    source, losses, taps, steps = in_opendss(feeder, mode)
    record, _ = simulate(grid, one_shape(grid, DAY), Controls(switching=switching(feeder, grid)), mode=mode,
                         differentiable=False)  # fmt: skip
    assert bool(record.converged.all())
    np.testing.assert_allclose(record.tap, taps, atol=1e-9)
    np.testing.assert_array_equal(record.capacitor, steps)
    np.testing.assert_allclose(record.source_kva.real.sum(axis=1), source, rtol=1e-6)
    np.testing.assert_allclose(record.losses_kva.real, losses, rtol=1e-6)
    total = energies(record)
    assert float(total["source"]) == pytest.approx(source.sum(), rel=1e-7)
    moves = np.sum(np.abs(np.diff(taps, axis=0)) > 1e-9)
    assert int(total["tap_moves"]) == moves > 0


@pytest.fixture(scope="module")
def battery():
    """IEEE 13 with a battery, and a day in which it is asked for more than it has."""
    unit = Storage("b", "671.1.2.3.0", 3, "wye", 4.16, 600.0, 500.0, 1000.0, kwh_stored=400.0)
    feeder = gridjax.feeders.ieee13().replace(storages=(unit,))
    grid = gridjax.compile(feeder)
    profiles = one_shape(grid, DAY)
    grid = grid.replace(nominal=dataclasses.replace(grid.nominal, generation_kw=jnp.array([300.0])))
    return feeder, grid, profiles


def test_a_battery_gives_what_it_has_and_no_more(battery):
    feeder, grid, profiles = battery
    settings = storages(feeder)
    record, state = simulate(grid, profiles, Controls(storages=settings))
    kw, kwh = np.asarray(record.battery_kw)[:, 0], np.asarray(record.battery_kwh)[:, 0]
    idling = float(settings.idling_kw[0])
    taken = 400.0 - kwh[-1]
    assert kw[0] == pytest.approx((400 - 200) * 0.9 - idling)  # all that is above the reserve, in the first hour
    np.testing.assert_allclose(kwh, 200.0)
    assert taken == pytest.approx(np.sum(kw + idling) / 0.9)
    assert float(state.storage.kwh[0]) == kwh[-1]
    np.testing.assert_allclose(record.generation_kw, kw)


def test_parts_and_scenarios_are_the_whole(battery):
    feeder, grid, profiles = battery
    controls = Controls(switching=switching(feeder, grid), storages=storages(feeder))
    whole, end = simulate(grid, profiles, controls)
    parts, last = simulate_long(grid, profiles, controls, part=12, progress=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), whole, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), end, last)
    two = jax.tree.map(lambda a: jnp.stack([a, a]), profiles)
    two = dataclasses.replace(two, p=two.p * jnp.array([1.0, 1.3])[:, None, None])
    many, _ = jax.vmap(simulate, in_axes=(None, 0, None))(grid, two, controls)
    np.testing.assert_allclose(many.losses_kva[0], whole.losses_kva, rtol=1e-7)
    assert float(many.losses_kva[1].real.sum()) > 1.2 * float(whole.losses_kva.real.sum())


def test_derivatives_go_through_time(battery):
    feeder, grid, profiles = battery
    controls = Controls(switching=switching(feeder, grid), storages=storages(feeder))

    def losses(scale):
        moved = dataclasses.replace(profiles, p=profiles.p * scale)
        return jnp.sum(simulate(grid, moved, controls)[0].losses_kva.real)

    value, slope = jax.jit(jax.value_and_grad(losses))(1.0)
    step = 1e-6
    assert float(slope) == pytest.approx(float(losses(1 + step) - losses(1 - step)) / (2 * step), rel=1e-4)
    assert float(slope) > float(value)


def test_steps_without_a_solution_are_counted_and_not_summed(battery):
    _, grid, profiles = battery
    record, _ = simulate(grid, profiles)
    lost = dataclasses.replace(record, converged=jnp.arange(24) != 5)
    total, rest = energies(record), energies(lost)
    assert int(total["not_converged"]) == 0 and int(rest["not_converged"]) == 1
    gone = float(total["losses"] - rest["losses"])
    assert gone == pytest.approx(float(record.losses_kva[5].real)) and gone > 0


def test_unknown_modes_are_refused(battery):
    _, grid, profiles = battery
    with pytest.raises(ValueError, match="mode 'daily' is unknown"):
        simulate(grid, profiles, mode="daily")
