"""Derivatives on shipped feeders: against differences of gridjax and of OpenDSS's engine, and close to the nose."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gridjax
from benchmarks.oracle import Oracle, floating_buses, without_zero_sequence
from gridjax.feeder import Generator

NAMES = ("ieee13", "ieee34", "ieee123", "european_lv")
FIELDS = [f.name for f in dataclasses.fields(gridjax.OperatingPoint)]
# Lines along which the voltage falls most.
LINES = {"ieee13": "650632", "ieee34": "l32", "ieee123": "l115", "european_lv": "line6"}
METHOD = {"ieee123": "newton"}  # the others sweep
# What compiles fastest: compiling is nearly all that these tests cost.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
BATCH = 16  # all batches are of this size, so that one compiled function serves them


@functools.cache
def case(name: str) -> SimpleNamespace:
    """A feeder and its compiled functions, which every test shares.

    Returns:
      feeder, with a generator added; layout and parameters, as `lay_out` gives them.
      assemble: from parameters to a grid and its tangent by the length of the line in LINES, as a factor on it.
      grid, by_length: what it gives for `parameters`.
      forward: `(grid, point, dgrid, dpoint)` to the voltages and their tangent.
      loss: `(grid, point)` to the weighted sum of all voltage magnitudes, and whether the solution converged.
      reverse: `(grid, points)`, BATCH points, to the losses, whether they converged, and the losses' gradients.
      slope: from voltages and their tangent to the loss's.
    """
    feeder = gridjax.feeders.load(name)
    near = feeder.loads[-1]
    kw = 0.5 * near.kw
    added = Generator("added", near.bus, near.phases, near.connection, near.kv, kw, -0.2 * kw, vmin_pu=0.1)
    feeder = feeder.replace(generators=(added,))
    layout, parameters = gridjax.lay_out(feeder)
    parameters = jax.tree.map(jnp.asarray, parameters)
    line = next(i for i, x in enumerate(feeder.lines) if x.name == LINES[name])
    group = next(g for g, x in enumerate(layout.groups) if x.kind == "lines" and line in x.rows)
    member = int(np.nonzero(layout.groups[group].rows == line)[0][0])
    weights = jax.random.normal(jax.random.key(0), (len(feeder.node_names),))
    solve = functools.partial(gridjax.solve, method=METHOD.get(name, "sweep"), tol=1e-13)

    def assembled(factor, parameters):
        elements = list(parameters.elements)
        length = elements[group]["length"]
        elements[group] = elements[group] | {"length": length.at[member].multiply(factor)}
        return gridjax.assemble(layout, parameters.replace(elements=tuple(elements)))

    def loss(grid, point):
        flow = solve(grid, point)
        return jnp.sum(weights * jnp.abs(flow.v)), flow.converged

    slope = jax.value_and_grad(loss, argnums=1, has_aux=True)

    def batch(grid, points):
        if name == "ieee123":
            return jax.vmap(slope, in_axes=(None, 0))(grid, points)
        return jax.lax.map(lambda p: slope(grid, p), points)  # one by one: compiles faster

    one = jnp.ones(())
    assemble = jit(lambda p: jax.jvp(lambda f: assembled(f, p), (one,), (one,)))
    grid, by_length = assemble(parameters)
    forward = jit(lambda g, p, dg, dp: jax.jvp(lambda g, p: solve(g, p).v, (g, p), (dg, dp)))
    return SimpleNamespace(
        feeder=feeder,
        layout=layout,
        parameters=parameters,
        assemble=assemble,
        grid=grid,
        by_length=by_length,
        forward=forward,
        loss=loss,
        reverse=jit(batch),
        slope=lambda v, dv: float(jnp.sum(weights * (jnp.conj(v) * dv).real / jnp.abs(v))),
    )


def times(tree, factor):
    return jax.tree.map(lambda a: a if a.dtype == jax.dtypes.float0 else a * factor, tree)


def plus(point, factor, change):
    return jax.tree.map(lambda a, b: a + factor * b, point, change)


def stacked(points):
    """Points as a batch of BATCH, the last one again and again."""
    points = [*points, *[points[-1]] * (BATCH - len(points))]
    return jax.tree.map(lambda *a: np.stack(a), *points)


def gap(ours, theirs) -> float:
    """The largest difference, relative to the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def pick(batch, i):
    return jax.tree.map(lambda a: a[i], batch)


def off_reference(c):
    """Nothing as the grid was assembled with, and no capacitor step whole."""
    n = c.grid.nominal
    scale = jax.random.uniform(jax.random.key(1), n.load_kw.shape, minval=0.8, maxval=1.2)
    return n.replace(
        load_kw=n.load_kw * scale,
        load_kvar=n.load_kvar * scale[::-1],
        tap=n.tap + 0.004,
        capacitor=n.capacitor - 0.3,
        source_pu=n.source_pu + 0.003,
    )


def random_change(point, key):
    """One of about the same size in every field."""
    leaves, build = jax.tree.flatten(point)
    keys = jax.random.split(key, len(leaves))
    return build.unflatten([0.1 * a * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


# --- By the operating point. ---


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_central_differences(name):
    """Every entry of every field, at taps and capacitor steps between the whole ones."""
    c = case(name)
    point = off_reference(c)
    flat, build = ravel_pytree(point)
    # Small, since some loads are 1e-4 pu away from a corner of their law; large beside the solver's 1e-13.
    power = 2e-4 * float(jnp.max(c.grid.nominal.load_kw))
    size = dict.fromkeys(FIELDS, power) | {"tap": 1e-5, "source_pu": 1e-5, "capacitor": 1e-3}
    steps = np.concatenate([np.full(getattr(point, k).shape, size[k]) for k in FIELDS])
    found = pick(c.reverse(c.grid, stacked([point]))[1], 0)
    slopes = []
    for which in np.array_split(np.arange(len(flat)), -(-len(flat) // (BATCH // 2))):
        moves = np.eye(len(flat))[which] * steps
        batch = [build(flat + jnp.asarray(sign * move)) for move in moves for sign in (1, -1)]
        (values, converged), _ = c.reverse(c.grid, stacked(batch))
        assert converged.all()
        up, down = np.asarray(values)[: len(batch)].reshape(-1, 2).T
        slopes.append((up - down) / (2 * steps[which]))
    expected = build(jnp.asarray(np.concatenate(slopes)))
    for field in FIELDS:
        if getattr(found, field).size:
            assert gap(getattr(found, field), getattr(expected, field)) < 1e-6, field


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_the_transpose_of_reverse_mode(name):
    c = case(name)
    point = off_reference(c)
    change = random_change(point, jax.random.key(2))
    gradient = pick(c.reverse(c.grid, stacked([point]))[1], 0)
    v, dv = c.forward(c.grid, point, times(c.by_length, 0.0), change)
    parts = ravel_pytree(gradient)[0] * ravel_pytree(change)[0]
    assert c.slope(v, dv) == pytest.approx(float(parts.sum()), abs=1e-10 * float(jnp.abs(parts).sum()))


def test_hessian_times_vector_equals_differences_of_the_gradient():
    c = case("ieee13")
    point = off_reference(c)
    change = random_change(point, jax.random.key(3))
    gradient = jax.grad(lambda p: c.loss(c.grid, p)[0])
    found = jit(lambda p, d: jax.jvp(gradient, (p,), (d,))[1])(point, change)
    h = 1e-3
    ends = c.reverse(c.grid, stacked([plus(point, sign * h, change) for sign in (1, -1)]))[1]
    for field in FIELDS:
        expected = np.asarray(getattr(ends, field)[0] - getattr(ends, field)[1]) / (2 * h)
        assert gap(getattr(found, field), expected) < 1e-5, field


@pytest.mark.parametrize("name", NAMES)
def test_tangents_are_those_of_opendss(name):
    """All node voltages by a load's kW and kvar, a tap, the source's pu and a line's length.

    The engine's voltages carry up to 1e-11 of rounding and unfinished iteration. The steps change the most moved
    voltage by 3e-5 to 1e-2, of which 1e-11 is 3e-7; truncation is of the order of that change squared, up to 3e-5.
    """
    c = case(name)
    n = c.grid.nominal
    load = int(jnp.argmax(n.load_kw))
    zero, still = times(n, 0.0), times(c.by_length, 0.0)
    changes = {
        "kW": (zero.replace(load_kw=zero.load_kw.at[load].set(n.load_kw[load])), 0.05),
        "kvar": (zero.replace(load_kvar=zero.load_kvar.at[load].set(n.load_kw[load])), 0.05),
        "source": (zero.replace(source_pu=zero.source_pu.at[0].set(1.0)), 1e-3),
    }
    if n.tap.size:
        changes["tap"] = (zero.replace(tap=zero.tap.at[0].set(1.0)), 1e-3)
    oracle = Oracle(c.feeder, tolerance=1e-12)
    floating = floating_buses(c.feeder)
    line = next(x for x in c.feeder.lines if x.name == LINES[name])

    def difference(solve, h):
        (up, ok), (down, fine) = solve(h), solve(-h)
        assert ok and fine
        return (up - down) / (2 * h)

    def longer(h):
        oracle.command(f"edit line.{line.name} length={line.length * (1 + h)!r}")
        return oracle.solve(n)

    pairs = {"length": (c.forward(c.grid, n, c.by_length, zero)[1], difference(longer, 0.02))}
    oracle.command(f"edit line.{line.name} length={line.length!r}")
    for what, (change, h) in changes.items():
        theirs = difference(lambda h, change=change: oracle.solve(plus(n, h, change)), h)
        pairs[what] = c.forward(c.grid, n, still, change)[1], theirs
    for what, pair in pairs.items():
        # At floating buses the zero sequence is rounding in both programs.
        ours, theirs = (without_zero_sequence(c.feeder, np.asarray(a), floating) for a in pair)
        assert gap(ours, theirs) < 1e-4, what


# --- Through `assemble`. ---


def test_gradients_by_parameters_equal_central_differences():
    """Lengths and matrices of lines, ratings of transformers, shares of load laws, the source's EMF; ieee13.

    Each array is moved as a whole, every entry by its own random part.
    """
    c = case("ieee13")
    point = off_reference(c)
    gradient = jit(jax.grad(lambda p: c.loss(gridjax.assemble(c.layout, p), point)[0]))(c.parameters)
    kinds = {"length", "r", "x", "c", "x_percent", "r_percent", "kv", "emf_volts"}
    kinds |= {f"{law}_{part}" for law in ("power", "current", "impedance") for part in "pq"}
    leaves, build = jax.tree_util.tree_flatten_with_path(c.parameters)
    values, points = [a for _, a in leaves], stacked([point])

    def value(i, step):
        grid, _ = c.assemble(build.unflatten([*values[:i], values[i] + step, *values[i + 1 :]]))
        (loss, converged), _ = c.reverse(grid, points)
        assert converged.all()
        return float(loss[0])

    seen = set()
    for i, ((path, a), slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        what = getattr(path[-1], "key", None) or getattr(path[-1], "name", None)
        if what not in kinds:
            continue
        seen.add(what)
        size = jnp.abs(a) if "law" not in jax.tree_util.keystr(path) else 1.0
        change = size * jax.random.normal(jax.random.fold_in(jax.random.key(4), i), a.shape)
        parts = slope * change
        found, scale = float(parts.sum()), float(jnp.abs(parts).max())
        assert scale > 0, path
        h = min(3e-6 / scale, 0.1)  # what hardly moves the voltages does so linearly
        expected = (value(i, h * change) - value(i, -h * change)) / (2 * h)
        rounding = 2e-13 / h  # the loss, of order one, is solved for to about 1e-13 or better
        assert found == pytest.approx(expected, abs=1e-6 * scale + rounding), path
    assert seen == kinds


# --- Close to the nose. ---


def loaded(c, scale: float):
    n = c.grid.nominal
    return n.replace(load_kw=n.load_kw * scale, load_kvar=n.load_kvar * scale)


@functools.cache
def nose():
    """IEEE 123 with loads that keep their power down to 0.1 pu, and the last load factor that Newton solves."""
    c = case("ieee123")
    loads = tuple(dataclasses.replace(x, vmin_pu=0.1, vlow_pu=0.05) for x in c.feeder.loads)
    _, parameters = gridjax.lay_out(c.feeder.replace(loads=loads))
    grid, still = c.assemble(jax.tree.map(jnp.asarray, parameters))
    low, high = 3.8, 4.4
    for _ in range(3):
        scales = np.linspace(low, high, BATCH)
        (_, converged), _ = c.reverse(grid, stacked([loaded(c, s) for s in scales]))
        count = int(np.argmin(np.asarray(converged)))
        assert count > 0 and converged[:count].all()
        low, high = scales[count - 1], scales[count]
    return grid, times(still, 0.0), float(low)


@pytest.mark.parametrize(("below", "h", "bound"), [(1e-2, 1e-5, 1e-5), (1e-3, 1e-6, 1e-4)])
def test_gradient_close_to_the_nose(below, h, bound):
    """Along a random direction in each field; there the refinement does not converge, and elimination answers."""
    c = case("ieee123")
    grid, still, last = nose()
    point = loaded(c, last * (1 - below))
    change = random_change(point, jax.random.key(5))
    parts = {k: times(change, 0.0).replace(**{k: getattr(change, k)}) for k in FIELDS}
    points = [plus(point, sign * h, part) for part in parts.values() for sign in (1, -1)]
    (values, converged), gradients = c.reverse(grid, stacked([*points, point]))
    assert converged.all()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradients))
    gradient = pick(gradients, -1)
    for i, (field, part) in enumerate(parts.items()):
        slope = float(jnp.sum(getattr(gradient, field) * getattr(change, field)))
        expected = float(values[2 * i] - values[2 * i + 1]) / (2 * h)
        v, dv = c.forward(grid, point, still, part)
        assert c.slope(v, dv) == pytest.approx(slope, rel=1e-7), field
        assert slope == pytest.approx(expected, rel=bound), field


def test_a_diverged_scenario_leaves_its_neighbours_gradients_alone():
    """To the last bit; its own gradient is zero."""
    c = case("ieee123")
    grid, _, last = nose()
    solved, lost = [1.0, 0.5, 3.0, 0.99 * last], [5.0, 12.0]
    mixed = c.reverse(grid, stacked([loaded(c, s) for s in [*solved, *lost, *solved[:2]]]))
    calm = c.reverse(grid, stacked([loaded(c, s) for s in [*solved, *solved]]))
    assert mixed[0][1][:7].tolist() == [True] * 4 + [False] * 2 + [True]
    assert calm[0][1].all()
    for ours, theirs in zip(jax.tree.leaves(mixed[1]), jax.tree.leaves(calm[1]), strict=True):
        np.testing.assert_array_equal(ours[:4], theirs[:4])
        assert not ours[4:6].any()
