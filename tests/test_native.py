"""The processor's own kernel beside the tiers, which stand in for it on accelerators: same equations, other code."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import every_element_feeder

import gridjax
from gridjax import feeders
from gridjax.feeder import Load
from gridjax.native import calls

NAMES = ["ieee13", "ieee34", "ieee37", "ieee123", "european_lv"]
TIERS = {"tree": None}


@functools.cache
def grid_of(name, dtype=np.float64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gridjax.compile(feeders.load(name), dtype=dtype)


def points(grid, batch, seed=0, spread=0.3):
    """Every field at random about the nominal point, capacitor steps in and out of service."""
    random = np.random.default_rng(seed)

    def about(a, low, high):
        a = np.asarray(a)
        return jnp.asarray(a * random.uniform(low, high, (batch, *a.shape)), a.dtype)

    nominal = grid.nominal
    steps = random.integers(0, 2, (batch, *nominal.capacitor.shape))
    return nominal.replace(
        load_kw=about(nominal.load_kw, 1 - spread, 1 + spread),
        load_kvar=about(nominal.load_kvar, 1 - spread, 1 + spread),
        generation_kw=about(nominal.generation_kw, 0.0, 1.0),
        generation_kvar=about(nominal.generation_kvar, 0.0, 1.0),
        tap=about(nominal.tap, 0.98, 1.02),
        capacitor=jnp.asarray(steps, nominal.capacitor.dtype),
        source_pu=about(nominal.source_pu, 0.99, 1.01),
    )


def many(**options):
    return jax.jit(jax.vmap(functools.partial(gridjax.solve, **options), in_axes=(None, 0)))


def test_the_kernel_is_what_runs_here():
    assert calls.usable(grid_of("ieee13"))


@pytest.mark.parametrize("method", ["sweep", "newton"])
@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_those_of_the_tiers(name, method):
    grid = grid_of(name)
    batch = points(grid, 21)
    ours = many(method=method, tol=1e-11)(grid, batch)
    theirs = many(method=method, tol=1e-11)(dataclasses.replace(grid, **TIERS), batch)
    assert ours.converged.all() and theirs.converged.all()
    # 37 and 123 have floating nodes, whose voltage to ground only shunts of 1e-6 of a rating fix.
    atol = 2e-8 if name in ("ieee37", "ieee123") else 1e-9
    np.testing.assert_allclose(ours.v, theirs.v, atol=atol, rtol=0)
    np.testing.assert_allclose(ours.slots, theirs.slots, atol=1e-9, rtol=0)
    for have, want in ((ours.source, theirs.source), (ours.taken, theirs.taken)):
        np.testing.assert_allclose(have, want, atol=1e-9 * np.abs(want).max(), rtol=0)


@pytest.mark.filterwarnings("ignore:feeder")
@pytest.mark.parametrize(("tree", "share"), [(True, 0.8), (False, 0.95)])
def test_iterations_about_another_point_are_fewer_and_lead_to_the_same(tree, share):
    def half(point):
        return point.replace(load_kw=0.5 * point.load_kw, load_kvar=0.5 * point.load_kvar, tap=point.tap - 0.0125)

    usual = grid_of("ieee34")
    moved = gridjax.compile(feeders.ieee34(), dtype=np.float64, around=half)
    batch = jax.vmap(half)(points(usual, 21, spread=0.1))
    batch = batch.replace(tap=jnp.broadcast_to(half(usual.nominal).tap, batch.tap.shape))
    change = {} if tree else TIERS
    ours, theirs = (many(tol=1e-11)(dataclasses.replace(g, **change), batch) for g in (moved, usual))
    assert ours.converged.all() and theirs.converged.all()
    assert ours.iterations.mean() < share * theirs.iterations.mean()
    np.testing.assert_allclose(ours.v, theirs.v, atol=1e-9, rtol=0)
    np.testing.assert_array_equal(moved.nominal.load_kw, usual.nominal.load_kw)


@pytest.mark.parametrize("options", [{"tol": 1e-4}, {"tol": 1e-4, "method": "newton"}, {"tol": 1e-6, "factor": 8.0}])
def test_losses_are_those_of_the_elements_however_far_the_iteration_went(options):
    """The power through the root and that of the loads are those of one solution of the linear circuit.

    Of the circuit as compiled: taps and capacitor steps elsewhere enter by currents, as loads do.
    """
    options = dict(options)
    factor = options.pop("factor", 1.0)  # so heavy that damped sweeps must take over
    grid = grid_of("ieee34")
    batch = points(grid, 19)
    still = {k: jnp.broadcast_to(getattr(grid.nominal, k), getattr(batch, k).shape) for k in ("tap", "capacitor")}
    batch = batch.replace(load_kw=batch.load_kw * factor, load_kvar=batch.load_kvar * factor, **still)

    def both(grid, point):
        flow = gridjax.solve(grid, point, **options)
        elements = sum(jnp.sum(s) for s in gridjax.element_losses(grid, point, flow).values())
        return gridjax.losses(grid, point, flow), elements, flow

    losses, elements, flow = jax.jit(jax.vmap(both, in_axes=(None, 0)))(grid, batch)
    assert flow.converged.any() and (factor == 1.0 or flow.iterations.max() > 12)
    done = np.asarray(flow.converged)
    np.testing.assert_allclose(losses[done], elements[done], rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_float32_solutions(name):
    double, single = grid_of(name), grid_of(name, np.float32)
    want = many(tol=1e-11)(double, points(double, 17))
    have = many(tol=1e-6)(single, points(single, 17))
    assert have.converged.all() and have.v.dtype == np.complex64
    np.testing.assert_allclose(have.v, want.v, atol=3e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.05, 3.0, 8.0, 20.0])
def test_loads_beyond_their_limits(factor):
    """Light and heavy loads: laws outside their limits, and scenarios that only damped sweeps solve, or none."""
    for name in ("ieee13", "ieee34"):
        grid = grid_of(name)
        batch = points(grid, 9)
        batch = batch.replace(load_kw=batch.load_kw * factor, load_kvar=batch.load_kvar * factor)
        ours = many(tol=1e-10, max_iterations=300)(grid, batch)
        theirs = many(tol=1e-10, max_iterations=300)(dataclasses.replace(grid, **TIERS), batch)
        both = np.asarray(ours.converged & theirs.converged)
        assert both.sum() >= np.asarray(theirs.converged).sum()
        np.testing.assert_allclose(ours.v[both], theirs.v[both], atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", ["sweep", "newton"])
def test_a_scenario_has_the_same_bits_in_any_company(method):
    grid = grid_of("ieee123")
    batch = points(grid, 45)
    solve = many(method=method)
    whole = solve(grid, batch)
    for rows in ([0], [44], [3, 44, 7, 0, 12], list(range(20, 45))):
        part = solve(grid, jax.tree.map(lambda a, rows=rows: a[np.array(rows)], batch))
        for name in ("v", "slots", "taken", "iterations", "residual"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[np.array(rows)], err_msg=name)
        np.testing.assert_allclose(part.source, whole.source[np.array(rows)], atol=1e-14)  # a product in XLA


@pytest.mark.parametrize("size", [1e-12, 1e-100])
def test_the_smallest_changes_have_their_answer(size):
    grid = grid_of("ieee13")
    point = grid.nominal

    def v(kw):
        return gridjax.solve(grid, point.replace(load_kw=kw)).v

    towards = jnp.ones_like(point.load_kw)
    _, whole = jax.jvp(v, (point.load_kw,), (towards,))
    _, tiny = jax.jvp(v, (point.load_kw,), (size * towards,))
    np.testing.assert_allclose(tiny / size, whole, atol=1e-8 * np.abs(whole).max())


@pytest.mark.parametrize("name", ["ieee13", "ieee34", "ieee123", "european_lv"])
def test_derivatives_are_those_of_the_tiers(name):
    """Forward and reverse, by all fields of the point, at points well within the loads' laws."""
    grid = grid_of(name)
    batch = points(grid, 11, spread=0.1)
    random = np.random.default_rng(1)
    weights = jnp.asarray(random.normal(size=(2, grid.shape.nodes)))
    towards = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape[1:])) * (1 + jnp.abs(a[0])), batch)

    def scalar(grid, point):
        flow = gridjax.solve(grid, point, tol=1e-12)
        losses = gridjax.losses(grid, point, flow) / (grid.base_va / 1e3)
        return jnp.sum(weights[0] * flow.v.real + weights[1] * flow.v.imag) + 3.0 * losses.real - 2.0 * losses.imag

    def both(grid, point):
        fields = {k: getattr(point, k) for k in point.__dataclass_fields__ if getattr(point, k).size}

        def of(part):
            return scalar(grid, point.replace(**part))

        change = {k: getattr(towards, k) for k in fields}
        return jax.grad(of)(fields), jax.jvp(of, (fields,), (change,))[1]

    run = jax.jit(jax.vmap(both, in_axes=(None, 0)))
    (slopes, along), (slopes_of_tiers, along_of_tiers) = (
        run(grid, batch),
        run(dataclasses.replace(grid, **TIERS), batch),
    )
    np.testing.assert_allclose(along, along_of_tiers, rtol=1e-6)
    for field, want in slopes_of_tiers.items():
        scale = np.abs(want).max()
        np.testing.assert_allclose(slopes[field], want, atol=1e-6 * scale, rtol=0, err_msg=field)


def test_second_derivatives_are_those_of_the_tiers():
    grid = grid_of("ieee13")
    point = jax.tree.map(lambda a: a[0], points(grid, 1, spread=0.1))
    some = jnp.arange(3)

    def scalar(grid, kw):
        at = point.replace(load_kw=point.load_kw.at[some].set(kw))
        flow = gridjax.solve(grid, at, tol=1e-12)
        return jnp.sum(jnp.abs(flow.v)) + gridjax.losses(grid, at, flow).real / 100.0

    run = jax.jit(jax.hessian(scalar, argnums=1))
    want = run(dataclasses.replace(grid, **TIERS), point.load_kw[some])
    np.testing.assert_allclose(run(grid, point.load_kw[some]), want, atol=1e-6 * np.abs(want).max())


def test_further_sources_and_their_derivatives():
    feeder = feeders.load("ieee13")
    first = feeder.sources[0]
    bus = next(b for b in feeder.buses if b.name == "671")
    second = dataclasses.replace(first, name="second", bus="671.1.2.3", base_kv=bus.base_kv * 3**0.5, pu=0.99)
    grid = gridjax.compile(dataclasses.replace(feeder, sources=(first, second)), dtype=np.float64)
    batch = points(grid, 5, spread=0.1)
    tiers = dataclasses.replace(grid, **TIERS)
    run = many(tol=1e-11)
    np.testing.assert_allclose(run(grid, batch).v, run(tiers, batch).v, atol=1e-9, rtol=0)

    def scalar(grid, pu, point):
        at = point.replace(source_pu=pu)
        flow = gridjax.solve(grid, at, tol=1e-12)
        return jnp.sum(jnp.abs(flow.v)) + gridjax.losses(grid, at, flow).real / 100.0

    slopes = jax.jit(jax.vmap(jax.grad(scalar, argnums=1), in_axes=(None, 0, 0)))
    np.testing.assert_allclose(slopes(grid, batch.source_pu, batch), slopes(tiers, batch.source_pu, batch), rtol=1e-6)


def test_without_numba_the_tiers_solve(monkeypatch):
    grid = grid_of("ieee13")
    want = gridjax.solve(grid, grid.nominal)
    monkeypatch.setattr(calls, "ffi", None)
    assert not calls.usable(grid)
    jax.clear_caches()
    np.testing.assert_allclose(gridjax.solve(grid, grid.nominal).v, want.v, atol=1e-8, rtol=0)
    jax.clear_caches()


@pytest.mark.parametrize("what", ["batch", "grids", "newton", "gradient", "gradient of grids"])
def test_programs_for_accelerators_too(what, monkeypatch):
    """Where there is an accelerator, a program holds both ways; here it is only built."""
    grid = grid_of("ieee13")
    grids = jax.tree.map(lambda a: jnp.stack([a] * 3), grid)  # a shape of which no trace is kept
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")

    def losses(grid, point):
        return gridjax.losses(grid, point, gridjax.solve(grid, point)).real

    slope = jax.grad(losses, argnums=1)
    program = {
        "batch": lambda grids, batch: jax.vmap(gridjax.solve, in_axes=(None, 0))(grid, batch),
        "grids": jax.vmap(gridjax.solve),
        "newton": jax.vmap(functools.partial(gridjax.solve, method="newton")),
        "gradient": lambda grids, batch: jax.vmap(slope, in_axes=(None, 0))(grid, batch),
        "gradient of grids": jax.vmap(slope),
    }[what]
    for platform, own_kernel in (("cpu", True), ("cuda", False)):
        text = jax.jit(program).trace(grids, grids.nominal).lower(lowering_platforms=(platform,)).as_text()
        assert ("gridjax" in text) == own_kernel, platform
        assert own_kernel or "dot_general" in text


def test_a_grid_of_traced_parameters_has_no_tree():
    layout, parameters = gridjax.lay_out(feeders.load("ieee13"))
    traced = jax.jit(lambda p: gridjax.assemble(layout, p))(parameters)
    assert traced.tree is None


def test_compiled_functions_have_names_of_their_own():
    """Else machine code from the cache could be taken for another's."""
    from numba.core.dispatcher import Dispatcher

    from gridjax.native import ffi, kernel, lanes

    functions = {id(f): f.py_func for m in (ffi, kernel, lanes) for f in vars(m).values() if isinstance(f, Dispatcher)}
    names = [f"{f.__module__}.{f.__qualname__}" for f in functions.values()]
    assert len(names) > 20
    assert len(names) == len(set(names))
    assert not [name for name in names if "<locals>" in name]


def test_a_point_of_another_precision():
    grid = grid_of("ieee13")
    single = jax.tree.map(lambda a: a.astype(jnp.float32), grid.nominal)
    np.testing.assert_allclose(gridjax.solve(grid, single).v, gridjax.solve(grid, grid.nominal).v, atol=1e-6, rtol=0)


def test_every_law_from_low_to_high_voltage():
    """All load models of one circuit between, at and beyond their limits, or without any: voltages and slopes."""
    feeder = every_element_feeder()
    limitless = {"vmin_pu": 0.0, "vmax_pu": 1e9, "vlow_pu": 0.0}
    zipv = (0.8, 0.0, 0.0, 1.3, 0.0, 0.0, 0.0)
    more = Load("limitless", "e2.1.0", 1, "wye", 8, 2.4, 30.0, 20.0, zipv=zipv, **limitless)
    feeder = dataclasses.replace(feeder, loads=(*feeder.loads, more))
    grid = gridjax.compile(feeder, dtype=np.float64)
    floating = np.array([name.startswith("m.") for name in feeder.node_names])  # behind a delta: only line to line
    tiers = dataclasses.replace(grid, **TIERS)
    levels = np.linspace(0.25, 1.3, 43)
    batch = jax.tree.map(lambda a: jnp.broadcast_to(a, (43, *a.shape)), grid.nominal)
    batch = batch.replace(source_pu=jnp.asarray(levels[:, None]) * jnp.ones_like(batch.source_pu))

    def scalar(grid, kw, kvar, point):
        flow = gridjax.solve(grid, point.replace(load_kw=kw, load_kvar=kvar), tol=1e-12, max_iterations=400)
        return jnp.sum(jnp.abs(flow.v)), flow

    run = jax.jit(jax.vmap(jax.value_and_grad(scalar, argnums=(1, 2), has_aux=True), in_axes=(None, 0, 0, 0)))
    (_, ours), slopes = run(grid, batch.load_kw, batch.load_kvar, batch)
    (_, theirs), want = run(tiers, batch.load_kw, batch.load_kvar, batch)
    both = np.asarray(ours.converged & theirs.converged)
    assert both.sum() >= 35
    near = both & (np.abs(np.asarray(ours.v - theirs.v)).max(1) < 1e-6)
    assert near.sum() >= both.sum() - 2  # laws that jump at a limit allow two solutions about it
    gap = np.asarray(ours.v - theirs.v)[near]
    np.testing.assert_allclose(gap[:, ~floating], 0.0, atol=1e-9)
    np.testing.assert_allclose(gap[:, floating] - gap[:, floating][:, :1], 0.0, atol=1e-9)
    for a, b in zip(slopes, want, strict=True):
        np.testing.assert_allclose(a[near], b[near], atol=1e-6 * np.abs(b).max(), rtol=0)
