"""Regulators and capacitor controls, static and timed, against OpenDSS; under vmap and grad; what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from switching_cases import Engine, day, points, switchyard

import gridjax
from gridjax.control.meters import read
from gridjax.control.regulators import _jumps
from gridjax.control.switching import advance, at_rest, operations, power_flow, settle, switched, switching
from gridjax.feeder import CapacitorControl


def tight(grid, point):
    return point, gridjax.solve(grid, point, tol=1e-10)


@functools.cache
def compiled(name):
    feeder = switchyard() if name == "switchyard" else getattr(gridjax.feeders, name)()
    grid = gridjax.compile(feeder)
    return feeder, grid, switching(feeder, grid)


def without_override(feeder):
    controls = feeder.capacitor_controls
    return feeder.replace(capacitor_controls=tuple(dataclasses.replace(c, voltage_override=False) for c in controls))


def at(points, k):
    return jax.tree.map(lambda a: np.asarray(a[k]), points)


@pytest.mark.filterwarnings("ignore:feeder 'ieee34' has doubtful data")
@pytest.mark.parametrize("name", ["ieee13", "ieee34", "ieee34_mod2", "ieee37", "ieee123", "ieee8500"])
def test_static_mode_is_the_engines_from_a_cold_start_and_at_random(name):
    feeder, grid, controls = compiled(name)
    rng = np.random.default_rng(5)
    n, taps = len(feeder.loads), len(feeder.regulators)
    starts = [grid.nominal, dataclasses.replace(grid.nominal, tap=jnp.ones(taps))]
    for _ in range(1 if name == "ieee8500" else 4):
        share = rng.uniform(0.2, 1.1) * rng.uniform(0.7, 1.3, n)
        starts.append(
            dataclasses.replace(
                starts[1],
                load_kw=grid.nominal.load_kw * share,
                load_kvar=grid.nominal.load_kvar * share,
                tap=1.0 + jnp.asarray(rng.integers(-8, 9, taps)) * controls.regulators.step,
                capacitor=jnp.asarray(rng.integers(0, 2, len(grid.nominal.capacitor)), float),
            )
        )
    batch = jax.tree.map(lambda *a: jnp.stack(a), *starts)

    @jax.jit
    @jax.vmap
    def run(point):
        return settle(grid, point, controls, at_rest(controls, point), tight, differentiable=False)

    ours, flow, state = run(batch)
    assert np.all(state.settled) and np.all(flow.converged)
    engine = Engine(feeder)
    for k, point in enumerate(starts):
        engine.start(point, "static")
        engine.engine.ActiveCircuit.Solution.Solve()
        tap, steps = engine.devices()
        np.testing.assert_allclose(ours.tap[k], tap, atol=1e-12)
        np.testing.assert_array_equal(ours.capacitor[k], steps)
        assert state.rounds[k] == engine.engine.ActiveCircuit.Solution.ControlIterations


@functools.cache
def over_time(timed, override):
    """A compiled run of the switchyard: `(points, hours, seconds) -> taps, steps, state` at every step."""
    feeder, grid, controls = compiled("switchyard")
    if not override:
        controls = switching(without_override(feeder), grid)

    @jax.jit
    def run(points, hours, seconds):
        def step(state, now):
            point, hour = now
            way = {"hour": hour, "differentiable": False}
            if timed:
                point, _, state = advance(grid, point, controls, state, seconds, tight, **way)
            else:
                point, _, state = settle(grid, point, controls, state, tight, seconds=seconds, **way)
            return state, (point.tap, point.capacitor, state)

        first = at_rest(controls, jax.tree.map(lambda a: a[0], points))
        return jax.lax.scan(step, first, (points, hours))[1]

    return run


@pytest.mark.parametrize(
    "timed, seconds, steps, seed",
    [(True, 120.0, 720, 0), (True, 1.0, 720, 2), (True, 3600.0, 720, 4), (False, 900.0, 192, 1)],
)
def test_every_device_does_what_the_engines_does_at_every_step(timed, seconds, steps, seed):
    feeder, grid, _ = compiled("switchyard")
    feeder = feeder if timed else without_override(feeder)  # in static mode it fights with the clock for ever
    profile = day(feeder, steps, seconds, seed)
    path = points(grid.nominal, profile)
    tap, capacitor, state = over_time(timed, timed)(path, jnp.asarray(profile["hours"]), seconds)
    engine = Engine(feeder)
    engine.start(at(path, 0), "time" if timed else "static", seconds)
    taps, banks = zip(*(engine.step(at(path, k)) for k in range(steps)), strict=True)
    np.testing.assert_allclose(tap, taps, atol=1e-12)
    np.testing.assert_array_equal(capacitor, banks)
    assert np.all(state.settled)
    if seconds == 120:  # each kind has acted, power has turned round, and more than one request has waited
        assert np.all(state.regulators.moves[-1] > 0) and np.all(state.capacitors.operations[-1] > 0)
        waiting = np.sum(np.isfinite(state.regulators.due), axis=-1)
        assert np.any(state.regulators.reversed) and np.max(waiting) > 1
        before, after = (jax.tree.map(lambda a, k=k: a[k], state) for k in (0, -1))
        moved = np.sum(np.abs(np.diff(state.regulators.position, axis=0)), axis=0)
        np.testing.assert_array_equal(operations(before, after)[0], moved)


def test_jumps_are_the_engines_where_seven_tenths_are_a_whole_number():
    """A regulator without load that needs 10, 20 and 30 taps."""
    feeder = switchyard().replace(loads=(), generators=(), capacitors=(), capacitor_controls=())
    step = (1.1 - 0.9) / 32
    table = _jumps(step, 32, 16)
    for need in (3, 10, 20, 30):
        engine = Engine(feeder)
        for r in feeder.regulators:
            engine.command(f"edit regcontrol.{r.name} enabled={'yes' if r.name == 'r3' else 'no'}")
        circuit = engine.engine.ActiveCircuit
        engine.command("solve")
        circuit.SetActiveBus("d")
        volts = np.hypot(*circuit.ActiveBus.Voltages[4:6]) / 20.0
        engine.command(f"edit regcontrol.r3 vreg={float(volts) * (1 + need * step)!r} band=0.1")
        engine.command("set controlmode=static")
        engine.command("set maxcontroliter=2")
        with pytest.raises(Exception, match="Max Control Iterations"):
            engine.command("solve")
        circuit.Transformers.Name, circuit.Transformers.Wdg = "r3", 2
        assert round((circuit.Transformers.Tap - 1.0) / step) == table[need]


def test_meters_show_what_the_results_show():
    feeder, grid, controls = compiled("switchyard")
    point = dataclasses.replace(grid.nominal, tap=1.0 + jnp.asarray([1, 4, -3, 2, 5]) * controls.regulators.step)

    @jax.jit
    def measure(point):
        flow = gridjax.solve(grid, point, tol=1e-12)
        results = gridjax.currents(grid, point, flow), gridjax.powers(grid, point, flow)
        return read(controls.meters, grid, point, flow), *results

    reading, amps, powers = jax.tree.map(np.asarray, measure(point))
    lines, units = ([x.name for x in table] for table in (feeder.lines, feeder.transformers))
    want = {
        "ltc": amps["transformers"][units.index("ltc"), 1, 1],
        "r1": amps["transformers"][units.index("r1"), 1, 0],
        "back": amps["transformers"][units.index("back"), 1, 0],
    }
    for name, current in want.items():
        row = [r.name for r in feeder.regulators].index(name)
        np.testing.assert_allclose(reading.amps[controls.regulators.amps[row]], current, rtol=1e-9)
    banks = controls.capacitors
    np.testing.assert_allclose(reading.amps[banks.amps[2]], amps["lines"][lines.index("l1"), 0, 1], rtol=1e-9)
    into = 1e3 * np.sum(powers["transformers"][units.index("ltc"), 0])
    np.testing.assert_allclose(reading.powers[banks.power[1]], into, rtol=1e-9)
    into = 1e3 * np.sum(powers["lines"][lines.index("l1"), 0])
    np.testing.assert_allclose(reading.powers[banks.power[3]], into, rtol=1e-9)
    into = 1e3 * np.sum(powers["transformers"][units.index("back"), 1])
    np.testing.assert_allclose(reading.powers[controls.regulators.power[4]], into, rtol=1e-9)


def test_scenarios_do_not_notice_each_other_and_failure_switches_nothing():
    _, grid, controls = compiled("ieee13")
    cold = dataclasses.replace(grid.nominal, tap=jnp.ones(3))
    scale = jnp.array([1.0, 40.0, 0.3])
    batch = jax.vmap(lambda m: dataclasses.replace(cold, load_kw=m * cold.load_kw, load_kvar=m * cold.load_kvar))(scale)
    run = jax.jit(lambda p: settle(grid, p, controls, at_rest(controls, p)))
    many_point, many_flow, many = jax.jit(jax.vmap(run))(batch)
    np.testing.assert_array_equal(many_flow.converged, [True, False, True])
    np.testing.assert_array_equal(many.settled, [True, False, True])
    np.testing.assert_array_equal(many.regulators.position[1], 0)
    for k in (0, 2):
        point, flow, state = run(at(batch, k))
        np.testing.assert_array_equal(many.regulators.position[k], state.regulators.position)
        np.testing.assert_allclose(many_point.tap[k], point.tap, atol=0)
        np.testing.assert_allclose(many_flow.v[k], flow.v, atol=1e-9)
        assert many.rounds[k] == state.rounds


def test_the_last_power_flow_has_a_derivative_and_decisions_have_none():
    _, grid, controls = compiled("ieee13")
    cold = dataclasses.replace(grid.nominal, tap=jnp.ones(3))

    def loss(scale):
        point = dataclasses.replace(cold, load_kw=scale * cold.load_kw)
        point, flow, state = settle(grid, point, controls, at_rest(controls, point), tight)
        return gridjax.losses(grid, point, flow).real, state.regulators.position

    slope, taps = jax.jit(jax.grad(loss, has_aux=True))(1.0)
    ahead, behind = (jax.jit(loss)(1.0 + h) for h in (1e-4, -1e-4))
    np.testing.assert_array_equal(ahead[1], behind[1])
    np.testing.assert_array_equal(ahead[1], taps)
    np.testing.assert_allclose(slope, (ahead[0] - behind[0]) / 2e-4, rtol=1e-6)
    run = functools.partial(settle, grid, solver=tight)
    both = [
        jax.jit(lambda p, d=d: run(p, controls, at_rest(controls, p), differentiable=d))(cold) for d in (True, False)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), *both)


def test_float32_settles_at_the_same_taps():
    feeder, _, controls = compiled("ieee13")
    grid = gridjax.compile(feeder, dtype=np.float32)
    single = switching(feeder, grid)
    assert all(a.dtype != np.float64 for a in jax.tree.leaves(single))
    cold = dataclasses.replace(grid.nominal, tap=jnp.ones(3, np.float32))
    point, flow, state = jax.jit(lambda p: settle(grid, p, single, at_rest(single, p)))(cold)
    assert point.tap.dtype == np.float32 and flow.converged and state.settled
    np.testing.assert_array_equal(state.regulators.position, [9, 6, 9])
    assert controls.rounds == single.rounds


def test_hunting_ends_at_the_limit_of_rounds():
    """The control closes at a voltage at which it opens."""
    feeder, grid, _ = compiled("switchyard")
    bank = dataclasses.replace(feeder.capacitors[0], kvar=(900.0,), closed=(True,), bus1="b.1.2.3", bus2="b.0.0.0")
    still = tuple(dataclasses.replace(r, max_tap_change=0) for r in feeder.regulators)
    feeder = feeder.replace(capacitors=(bank,), capacitor_controls=(), regulators=still)
    grid = gridjax.compile(feeder)
    solve = jax.jit(gridjax.solve)
    flows = [solve(grid, dataclasses.replace(grid.nominal, capacitor=jnp.array([on]))) for on in (0.0, 1.0)]
    node = feeder.node_names.index("b.1")
    volts = [float(abs(flow.v[node]) * grid.node_volts[node]) for flow in flows]
    middle = sum(volts) / 2 / 20
    hunter = CapacitorControl("hunter", bank.name, "voltage", "line.l1", 2, middle, middle, 20.0)
    controls = switching(feeder.replace(capacitor_controls=(hunter,)), grid).replace(rounds=7)
    _, flow, state = jax.jit(lambda p: settle(grid, p, controls, at_rest(controls, p)))(grid.nominal)
    assert volts[1] > volts[0]
    assert flow.converged and not state.settled and state.rounds == 7
    np.testing.assert_array_equal(state.regulators.moves, 0)
    assert state.capacitors.operations[0] == 7


def test_at_rest_takes_the_nearest_position_and_the_steps_up_to_the_last():
    _, grid, controls = compiled("switchyard")
    tap = jnp.array([1.2, 1.0031, 1.0032, 0.95, 0.8])
    steps = grid.nominal.capacitor.at[:3].set(jnp.array([0.0, 1.0, 0.0]))
    state = at_rest(controls, dataclasses.replace(grid.nominal, tap=tap, capacitor=steps))
    np.testing.assert_array_equal(state.regulators.position, [16, 0, 1, -8, -16])
    np.testing.assert_array_equal(state.capacitors.steps, [2, 0, 1, 2, 0, 1])
    point = switched(grid.nominal, controls, state)
    np.testing.assert_array_equal(point.capacitor, [1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1])


def change(table, name, **values):
    def edit(feeder):
        rows = tuple(dataclasses.replace(x, **values) if x.name == name else x for x in getattr(feeder, table))
        return feeder.replace(**{table: rows})

    return edit


def taps_of(name, **values):
    def edit(feeder):
        unit = next(t for t in feeder.transformers if t.name == name)
        windings = (unit.windings[0], dataclasses.replace(unit.windings[1], **values))
        return change("transformers", name, windings=windings)(feeder)

    return edit


@pytest.mark.parametrize(
    "edit, words",
    [
        (change("regulators", "r2", transformer="r1"), "'r2'.*'r1' moves the same winding"),
        (taps_of("r1", num_taps=0), "'r1'.*no taps"),
        (taps_of("r1", num_taps=33), "'r1'.*so that 1.0 is a tap"),
        (change("regulators", "r1", band=0.0), "'r1'.*band must be positive"),
        (change("regulators", "r1", pt_phase=2), "'r1'.*pt_phase must be 1 to 1"),
        (change("regulators", "r1", delay_s=-1.0), "'r1'.*negative"),
        (change("regulators", "r1", ct_primary_a=0.0), "'r1'.*must be positive"),
        (change("regulators", "r3", monitored_bus="d.7"), "'r3'.*no node d.7"),
        (change("capacitor_controls", "amps", capacitor="volts"), "'amps'.*'volts' switches the same"),
        (change("capacitor_controls", "volts", on=124.0), "'volts'.*exchange on and off"),
        (change("capacitor_controls", "kvar", off=700.0), "'kvar'.*exchange on and off"),
        (change("capacitor_controls", "factor", on=1.2), "'factor'.*between -1"),
        (change("capacitor_controls", "kvar", element="load.la"), "'kvar'.*name a line"),
        (change("capacitor_controls", "volts", element="line.none"), "'volts'.*cannot find"),
        (change("capacitor_controls", "kvar", terminal=3), "'kvar'.*no terminal 3"),
        (change("capacitor_controls", "volts", pt_phase=4), "'volts'.*lacks conductor 4"),
        (change("capacitor_controls", "amps", ct_phase=4), "'amps'.*lacks"),
        (change("capacitor_controls", "clock", vmin=220.0), "'clock'.*vmin must be below"),
        (change("capacitors", "volts", closed=(False, True, False)), "'volts'.*put those in service first"),
    ],
)
def test_settings_that_make_no_sense_are_refused(edit, words):
    _, grid, _ = compiled("switchyard")
    with pytest.raises(ValueError, match=words):
        switching(edit(switchyard()), grid)


def test_time_controls_need_the_hour_and_switching_its_grid():
    _, grid, controls = compiled("switchyard")
    with pytest.raises(ValueError, match="give `hour`"):
        settle(grid, grid.nominal, controls, at_rest(controls, grid.nominal), power_flow)
    with pytest.raises(ValueError, match="compile it anew"):
        switching(gridjax.feeders.ieee13(), grid)
