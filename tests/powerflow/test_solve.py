"""`solve` against closed forms and a dense nodal solver in NumPy; batches, transforms and failures."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from feeders_for_tests import MIDDLE, every_element_feeder, two_bus_feeder

import gridjax
from gridjax.admittance import describe, primitive
from gridjax.feeder import (
    Bus,
    Capacitor,
    Feeder,
    Generator,
    Line,
    LineCode,
    Load,
    Reactor,
    Regulator,
    SequenceCode,
    Source,
    Transformer,
    Winding,
    split_terminal,
)
from gridjax.generation import pv_power, storage_power
from gridjax.powerflow.injections import Laws, factors, generator_law, load_law

TOL = 1e-13
METHODS = ("sweep", "newton")
TABLES = ("sources", "lines", "switches", "transformers", "capacitors", "reactors", "admittances")
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PRIMITIVE = jit(primitive, static_argnums=0)
SOLVE = {m: jit(functools.partial(gridjax.solve, method=m)) for m in METHODS}
LAW = jit(lambda laws, v2: factors(laws, v2, True, True))


# --- The reference: one dense nodal matrix, and the devices' currents by substitution. ---


def written(feeder: Feeder, **values) -> Feeder:
    """The feeder with an operating point's values written into its tables (generation apart)."""
    new = dataclasses.replace
    transformers = {t.name: t for t in feeder.transformers}
    for regulator, tap in zip(feeder.regulators, values.get("tap", ()), strict=False):
        t = transformers[regulator.transformer]
        windings = list(t.windings)
        windings[regulator.winding - 1] = new(windings[regulator.winding - 1], tap=float(tap))
        transformers[t.name] = new(t, windings=tuple(windings))
    out = feeder.replace(transformers=tuple(transformers.values()))
    if "capacitor" in values:
        steps = iter(np.asarray(values["capacitor"]).tolist())
        banks = tuple(new(c, closed=tuple(next(steps) for _ in c.kvar)) for c in feeder.capacitors)
        out = out.replace(capacitors=banks)
    if "source_pu" in values:
        pairs = zip(feeder.sources, values["source_pu"], strict=True)
        out = out.replace(sources=tuple(new(s, pu=float(pu)) for s, pu in pairs))
    if "load_kw" in values:
        triples = zip(feeder.loads, values["load_kw"], values["load_kvar"], strict=True)
        out = out.replace(loads=tuple(new(x, kw=float(p), kvar=float(q)) for x, p, q in triples))
    return out


def nominal_generation(feeder: Feeder) -> list[tuple[float, float]]:
    return [
        *((g.kw, g.kvar) for g in feeder.generators),
        *(pv_power(x) for x in feeder.pv_systems),
        *(storage_power(x) for x in feeder.storages),
    ]


def reference(feeder: Feeder, generation=None) -> np.ndarray:
    """Node voltages in per unit: `Y v = I(v)` over all nodes, linear solves refined in extended precision."""
    node = {name: i for i, name in enumerate(feeder.node_names)}
    ground = len(node)
    volts = np.array([1e3 * b.base_kv for b in feeder.buses for _ in b.nodes] + [1.0])
    y = np.zeros((ground + 1, ground + 1), np.clongdouble)
    fixed = np.zeros(ground + 1, complex)
    for table in TABLES:
        for x in getattr(feeder, table):
            d = describe(feeder, x)
            at = [node.get(c, ground) for c in d.conductors]
            matrix = np.asarray(PRIMITIVE(d.static, d.params)) * np.outer(volts[at], volts[at]) / 1e6
            np.add.at(y, np.ix_(at, at), matrix)
            if table == "sources":
                n = len(at)
                star = 1e3 * x.base_kv / (2 * np.sin(np.pi / n) if n > 1 else 1)
                emf = x.pu * star * np.exp(1j * (np.radians(x.angle_deg) - 2 * np.pi * np.arange(n) / n))
                np.add.at(fixed, at, matrix @ (emf / volts[at]))
    y, fixed = y[:ground, :ground], fixed[:ground]
    lu = scipy.linalg.lu_factor(y.astype(complex))

    def linear(i):
        v = scipy.linalg.lu_solve(lu, i)
        for _ in range(3):
            v = v + scipy.linalg.lu_solve(lu, (i - y @ v).astype(complex))
        return v

    ends, powers, ratings, laws = [], [], [], []
    devices = [(x, load_law(x), x.kw + 1j * x.kvar) for x in feeder.loads]
    given = nominal_generation(feeder) if generation is None else zip(*generation, strict=True)
    machines = (*feeder.generators, *feeder.pv_systems, *feeder.storages)
    devices += [(x, generator_law(x), -complex(*pq)) for x, pq in zip(machines, given, strict=True)]
    for x, law, s in devices:
        bus, nodes = split_terminal(x.bus)
        names = [node.get(f"{bus}.{k}", ground) for k in nodes]
        for k in range(x.phases):
            other = names[-1] if x.connection == "wye" else names[(k + 1) % len(names)]
            ends.append((names[k], other))
            powers.append(s / x.phases / 1e3)  # of 1 MVA
            ratings.append(1e3 * x.kv / (np.sqrt(3) if x.connection == "wye" and x.phases > 1 else 1))
            laws.append(law)
    ends, powers, ratings = np.array(ends), np.array(powers), np.array(ratings)
    laws = Laws(**{k: np.array([law[k] for law in laws]) for k in laws[0]})
    v = linear(fixed)
    for _ in range(400):
        full = np.append(v.astype(complex), 0) * volts
        u = (full[ends[:, 0]] - full[ends[:, 1]]) / ratings
        fp, fq = (np.asarray(f) for f in LAW(laws, np.abs(u) ** 2))
        i = (powers.real * fp - 1j * powers.imag * fq) * u
        drawn = np.zeros(ground + 1, complex)
        np.add.at(drawn, ends[:, 0], i * volts[ends[:, 0]] / ratings)
        np.add.at(drawn, ends[:, 1], -i * volts[ends[:, 1]] / ratings)
        v, before = linear(fixed - drawn[:ground]), v
        if np.abs(v - before).max() < 1e-14:
            break
    assert np.abs(v - before).max() < 1e-13
    return v.astype(complex)


def random_points(feeder: Feeder, grid, count: int, seed: int):
    """Operating points about the nominal one: taps within 10 %, fractional capacitor steps, sources within 3 %.

    Series banks stay in service: without them their far side would be an island.
    """
    series = [c.bus2 is not None and not c.bus2.endswith(".0") for c in feeder.capacitors for _ in c.kvar]
    rng = np.random.default_rng(seed)

    def about(x, low, high):
        return x[None] * rng.uniform(low, high, (count, x.shape[0]))

    n = grid.nominal
    return gridjax.OperatingPoint(
        load_kw=about(n.load_kw, 0.5, 1.5),
        load_kvar=about(n.load_kvar, 0.5, 1.5),
        generation_kw=about(n.generation_kw, -1.0, 1.5),
        generation_kvar=about(n.generation_kvar, -1.0, 2.0),
        tap=jnp.asarray(rng.uniform(0.9, 1.1, (count, n.tap.shape[0]))),
        capacitor=jnp.asarray(np.where(series, 1.0, rng.choice([0.0, 0.3, 1.0], (count, len(series))))),
        source_pu=about(n.source_pu, 0.97, 1.03),
    )


def pick(points, i):
    return jax.tree.map(lambda a: a[i], points)


@functools.cache
def solver(method="sweep", tol=TOL, max_iterations=300):
    """`solve` over a batch of points."""
    options = {"method": method, "tol": tol, "max_iterations": max_iterations}
    return jit(jax.vmap(functools.partial(gridjax.solve, **options), in_axes=(None, 0)))


def check_against_reference(feeder, count, seed, methods, atol=1e-11):
    """Random operating points of one feeder; returns points and voltages."""
    grid = gridjax.compile(feeder)
    points = random_points(feeder, grid, count, seed)
    expected = []
    for i in range(count):
        values = {f.name: np.asarray(getattr(points, f.name)[i]) for f in dataclasses.fields(points)}
        generation = (values["generation_kw"], values["generation_kvar"])
        expected.append(reference(written(feeder, **values), generation))
    for method in methods:
        flows = solver(method)(grid, points)
        assert flows.converged.all(), method
        np.testing.assert_allclose(flows.v, expected, atol=atol, rtol=0)
    return points, flows


# --- Whole feeders against the reference. ---

FOUR = LineCode(
    "four",
    tuple(tuple(0.3 if i == j else 0.08 for j in range(4)) for i in range(4)),
    tuple(tuple(0.5 if i == j else 0.2 for j in range(4)) for i in range(4)),
    tuple(tuple(9.0 if i == j else -2.0 for j in range(4)) for i in range(4)),
)


def meshed_feeder() -> Feeder:
    """Every element, a loop, a second source, a four-wire line, a series capacitor's and reactor's branch."""
    f = every_element_feeder()
    grounded = Winding("m.1.2.3.0", "wye", 0.48, 75.0)  # a floating side would ask for more digits
    transformers = tuple(
        dataclasses.replace(t, windings=(t.windings[0], grounded)) if t.name == "floating" else t
        for t in f.transformers
    )
    wide = tuple(dataclasses.replace(x, vmin_pu=0.8, vmax_pu=1.2) for x in f.loads)
    return f.replace(
        transformers=transformers,
        buses=(*f.buses, Bus("n2", 0.48 / 3**0.5, (1, 2, 3, 4))),
        sources=(*f.sources, Source("other", "k.1.2.3", 4.16, 1.01, -1.0, 0.8, 6.0, 1.0, 8.0)),
        codes=(*f.codes, FOUR),
        lines=(
            *f.lines,
            Line("four", "n.1.2.3.4", "n2.1.2.3.4", "four", 0.02),
            Line("tie", "d.1.2.3", "b.1.2.3", "sequence", 1.2),
        ),
        loads=(
            *wide,
            Load("n2a", "n2.1.4", 1, "wye", 1, 0.277, 9.0, 3.0),
            Load("n2b", "n2.2.4", 1, "wye", 5, 0.277, 2.0, 1.0),
        ),
    )


def test_every_element_in_a_mesh_with_two_sources():
    feeder = meshed_feeder()
    _, flows = check_against_reference(feeder, 4, 0, METHODS)
    neutral = feeder.node_names.index("n2.4")
    assert (np.abs(flows.v[:, neutral]) > 3e-4).all()


@pytest.mark.parametrize("seed", [11, 12])
def test_random_feeders(seed):
    """Trees and loops of three-phase buses, loads of all models in wye and delta."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 9))
    ends = [(int(rng.integers(0, i)), i) for i in range(1, n)] + [(1, n - 1)] * (seed % 2)
    codes = (SequenceCode("s", 3, *rng.uniform(0.1, 0.5, 4).tolist(), 10.0, 6.0),)
    loads = tuple(
        Load(f"p{b}", f"b{b}.1.2.3", 3, "delta", int(rng.integers(1, 8)), 4.16, *rng.uniform(10, 90, 2).tolist())
        if rng.random() < 0.5
        else Load(f"p{b}", f"b{b}.{rng.integers(1, 4)}.0", 1, "wye", int(rng.integers(1, 8)), 2.4,
                  *rng.uniform(10, 60, 2).tolist())
        for b in range(1, n)
    )  # fmt: skip
    feeder = Feeder(
        "random", 50.0, tuple(Bus(f"b{i}", MIDDLE, (1, 2, 3)) for i in range(n)),
        (Source("s", "b0.1.2.3", 4.16, 1.02, 40.0, 0.01, 0.1, 0.02, 0.3, 0.03, 0.2),), codes,
        lines=tuple(Line(f"l{k}", f"b{i}.1.2.3", f"b{j}.1.2.3", "s", float(rng.uniform(0.1, 0.8)))
                    for k, (i, j) in enumerate(ends)),
        capacitors=(Capacitor("c", f"b{n - 1}.1.2.3", 3, "wye", 4.16, (60.0, 30.0), (True, False), f"b{n - 1}.0.0.0"),),
        loads=loads, generators=(Generator("g", "b2.1.2.3.0", 3, "wye", 4.16, 50.0, 10.0),),
    )  # fmt: skip
    check_against_reference(feeder, 3, seed, ("sweep",))


def test_a_loop_and_two_sources_with_the_switches_changed():
    """One switch open that was closed, and the other way round."""
    feeder = meshed_feeder()
    changed = tuple(dataclasses.replace(s, closed=not s.closed) for s in feeder.switches)
    feeder = feeder.replace(switches=changed)
    _, flows = check_against_reference(feeder, 2, 3, ("sweep",))
    f, b, d = (feeder.node_names.index(name) for name in ("f.1", "b.1", "d.1"))
    assert (np.abs(flows.v[:, f] - flows.v[:, b]) < 1e-3 * np.abs(flows.v[:, f] - flows.v[:, d])).all()


# --- Regulators: any winding, any connection, in rows and side by side. ---


def regulated_feeder() -> Feeder:
    """From the source's bus s:

    s =ganged= a =b1, b2, b3= b (in a row; b phase by phase)    s =open delta= o (phase 2 straight through)
    s =delta side= d    s =delta both= e (grounded by a reactor)    s =centre= t (both halves and the primary)
    s =both= w (both windings)
    """

    def wye(bus, kv=4.16, kva=500.0):
        return Winding(f"{bus}.1.2.3.0", "wye", kv, kva)

    def delta(bus, kv=4.16):
        return Winding(f"{bus}.1.2.3", "delta", kv, 500.0)

    def across(bus, i, j):
        return Winding(f"{bus}.{i}.{j}", "wye", 4.16 if j else 2.4, 200.0)

    def load(name, terminal, phases=3, connection="wye", model=1, kv=4.16, kw=90.0):
        return Load(name, terminal, phases, connection, model, kv, kw, 0.4 * kw, vmin_pu=0.8, vmax_pu=1.25)

    return Feeder(
        "regulated",
        60.0,
        (*(Bus(b, MIDDLE, (1, 2, 3)) for b in "sabodew"), Bus("t", 0.12, (1, 2))),
        (Source("g", "s.1.2.3", 4.16, 1.0, 0.0, 0.05, 0.3, 0.05, 0.3),),
        (SequenceCode("one", 1, 0.2, 0.3, 0.2, 0.3, 0.0, 0.0),),
        lines=(Line("through", "s.2", "o.2", "one", 0.1),),
        transformers=(
            Transformer("ganged", 3, (wye("s"), wye("a")), (2.0,)),
            *(Transformer(f"b{k}", 1, (across("a", k, 0), across("b", k, 0)), (1.0,)) for k in (1, 2, 3)),
            Transformer("od1", 1, (across("s", 1, 2), across("o", 1, 2)), (1.0,)),
            Transformer("od2", 1, (across("s", 3, 2), across("o", 3, 2)), (1.0,)),
            Transformer("side", 3, (delta("s"), wye("d")), (4.0,), 0.3, 0.8),
            Transformer("deltas", 3, (delta("s"), delta("e")), (4.0,)),
            Transformer(
                "centre",
                1,
                (
                    Winding("s.2.0", "wye", 2.4, 50.0, 0.6),
                    Winding("t.1.0", "wye", 0.12, 50.0, 1.2),
                    Winding("t.0.2", "wye", 0.12, 50.0, 1.2),
                ),
                (2.04, 2.04, 1.36),
                0.2,
                0.5,
            ),
            Transformer("both", 3, (wye("s"), wye("w")), (3.0,), 0.2, 0.6),
        ),
        regulators=(
            Regulator("rg", "ganged", 2),
            *(Regulator(f"r{k}", f"b{k}", 2) for k in (1, 2, 3)),
            Regulator("ro1", "od1", 2),
            Regulator("ro2", "od2", 1),
            Regulator("rs", "side", 1),
            Regulator("rd", "deltas", 2),
            Regulator("c2", "centre", 2),
            Regulator("c3", "centre", 3),
            Regulator("c1", "centre", 1),
            Regulator("w1", "both", 1),
            Regulator("w2", "both", 2),
        ),
        reactors=(Reactor("ground", "e.1.2.3", 3, "wye", 20.0, 80.0, bus2="e.0.0.0"),),
        loads=(
            load("la", "a.1.2.3.0"),
            load("lb1", "b.1.0", 1, kv=2.4),
            load("lb2", "b.2.3", 1, "delta", 5, kw=40.0),
            load("lo", "o.1.2.3", 3, "delta", 4),
            load("ld", "d.1.2.3.0", model=2, kw=150.0),
            load("le", "e.1.2.3", 3, "delta"),
            load("lt1", "t.1.0", 1, kv=0.12, kw=12.0),
            load("lt2", "t.1.2", 1, kv=0.24, kw=9.0),
            load("lw", "w.1.2.3.0", kw=200.0),
        ),
    )


@pytest.fixture(scope="module")
def regulated():
    feeder = regulated_feeder()
    return feeder, *check_against_reference(feeder, 5, 5, METHODS)


def test_a_tap_is_the_same_as_in_the_table(regulated):
    """Regulators of any kind equal the compiled feeder that has their taps for good and no regulators."""
    feeder, points, flows = regulated
    values = {f.name: np.asarray(getattr(points, f.name)[3]) for f in dataclasses.fields(points)}
    fixed = gridjax.compile(written(feeder, **values).replace(regulators=()))
    flow = gridjax.solve(fixed, fixed.nominal, tol=TOL)
    np.testing.assert_allclose(flow.v, flows.v[3], atol=1e-11, rtol=0)
    assert np.ptp(np.abs(flows.v), axis=0).max() > 0.05  # the taps did something


def test_taps_may_differ_from_the_reference_taps(regulated):
    """The table's taps only say about which point the operators are made."""
    feeder, points, flows = regulated
    grid = gridjax.compile(written(feeder, tap=np.linspace(0.92, 1.08, len(feeder.regulators))))
    again = solver()(grid, points)
    np.testing.assert_allclose(again.v, flows.v, atol=1e-11, rtol=0)


# --- Closed forms. ---


def three_circuits() -> Feeder:
    """Three uncoupled circuits of one line each: constant power, constant impedance, constant current."""
    loads = [
        Load(f"l{k}", f"b.{k}.0", 1, "wye", model, MIDDLE, 500.0, 200.0, vmin_pu=0.3, vmax_pu=2.0, vlow_pu=0.2)
        for k, model in ((1, 1), (2, 2), (3, 5))
    ]
    code = LineCode("c", *(tuple(tuple(x * (i == j) for j in range(3)) for i in range(3)) for x in (0.4, 0.9, 0.0)))
    return Feeder(
        "three",
        60.0,
        (Bus("a", MIDDLE, (1, 2, 3)), Bus("b", MIDDLE, (1, 2, 3))),
        (Source("s", "a.1.2.3", 4.16, 1.0, 0.0, 0.1, 0.2, 0.1, 0.2),),
        (code,),
        lines=(Line("l", "a.1.2.3", "b.1.2.3", "c", 1.0),),
        loads=tuple(loads),
    )


Z = 0.5 + 1.1j  # source and line of `three_circuits`, ohm
DIRECTION = 0.8 + 0.6j
NOSE = (1e3 * MIDDLE) ** 2 / 2 / (abs(Z) + (Z * np.conj(DIRECTION)).real) / 1e3  # kVA: where the root vanishes


@pytest.fixture(scope="module")
def small():
    return gridjax.compile(three_circuits())


def loads_of(grid, kva):
    """Operating points with these complex powers at every load."""
    count, loads = len(kva), grid.shape.loads
    points = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), grid.nominal)
    p, q = (jnp.tile(jnp.asarray(part)[:, None], (1, loads)) for part in (np.real(kva), np.imag(kva)))
    return points.replace(load_kw=p, load_kvar=q)


@pytest.mark.parametrize("method", METHODS)
def test_two_buses_in_closed_form(small, method):
    """From -2 MVA to 90 % of the nose; |V|^2 = E^2/2 - RP - XQ + sqrt((E^2/2 - RP - XQ)^2 - |Z|^2 |S|^2)."""
    e = 1e3 * MIDDLE
    kva = np.concatenate([[-2000.0, -500.0, 0.0, 1.0], np.linspace(0.05, 0.9, 12) * NOSE]) * DIRECTION
    flows = solver(method)(small, loads_of(small, kva))
    s = kva * 1e3
    half = e**2 / 2 - (Z * np.conj(s)).real
    squared = half + np.sqrt(half**2 - abs(Z * s) ** 2)
    found = np.asarray(flows.v) * e
    assert flows.converged.all()
    np.testing.assert_allclose(np.abs(found[:, 3]) ** 2, squared, rtol=1e-10)
    np.testing.assert_allclose(found[:, 3] + Z * np.conj(s / found[:, 3]), e, rtol=1e-10)
    turned = found[:, 4] * np.exp(2j * np.pi / 3)
    np.testing.assert_allclose(turned, e / (1 + Z * np.conj(s) / e**2), rtol=1e-10)  # a divider
    turned = found[:, 5] * np.exp(-2j * np.pi / 3)
    np.testing.assert_allclose(turned + Z * np.conj(s / turned) * np.abs(turned) / e, e, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_beyond_the_nose_no_solution_is_invented(small, method):
    """What has converged there is a solution all the same: the impedance that the load is far below its limits."""
    points = loads_of(small, np.array([0.98, 1.02, 1.5, 3.0]) * NOSE * DIRECTION)
    flows = solver(method)(small, points)
    residual = jit(jax.vmap(functools.partial(gridjax.current_residual, small)))(points, flows)
    assert flows.converged[0] and abs(flows.v[0, 3]) > 0.5
    for i in range(1, 4):
        assert not flows.converged[i] or (np.abs(residual[i]) < 1e-9).all()
        assert not flows.converged[i] or abs(flows.v[i, 3]) < 0.3  # the limit of constant power


def test_both_methods_find_the_upper_solution(small):
    """Close to the nose, where the lower one is near."""
    points = loads_of(small, np.linspace(0.9, 0.995, 12) * NOSE * DIRECTION)
    upper, other = (solver(m, max_iterations=n)(small, points) for m, n in (("newton", 30), ("sweep", 3000)))
    assert upper.converged.all() and other.converged.all()
    np.testing.assert_allclose(upper.v, other.v, atol=1e-9, rtol=0)


def test_a_balanced_feeder_is_its_positive_sequence():
    """Two nodes by hand: source z, pi line, constant power; the other phases are turned by 120 degrees."""
    feeder = two_bus_feeder()
    grid = gridjax.compile(feeder)
    point = grid.nominal.replace(load_kw=grid.nominal.load_kw * 4, load_kvar=grid.nominal.load_kvar * 4)
    v = np.asarray(gridjax.solve(grid, point, tol=TOL).v)
    e = 4160 / 3**0.5
    line, shunt, source = 1 / (0.2 + 0.4j), 0.5j * 120 * np.pi * 10e-9, 1 / 1e-3j
    y = np.array([[source + line + shunt, -line], [-line, line + shunt]])
    x = np.array([e, e], complex)
    for _ in range(200):
        x = np.linalg.solve(y, [source * e, -np.conj((400 + 133.333333333333333j) * 1e3 / x[1])])
    turn = np.exp(-2j * np.pi / 3 * np.arange(3))
    np.testing.assert_allclose(v.reshape(2, 3) * turn.conj(), np.outer(x / e, np.ones(3)), atol=1e-12, rtol=0)


# --- Transforms. ---


def batch(grid, count=6, seed=7):
    rng = np.random.default_rng(seed)
    kva = rng.uniform(50, 500, count) + 1j * rng.uniform(0, 200, count)
    return loads_of(grid, kva).replace(source_pu=jnp.asarray(rng.uniform(0.97, 1.03, (count, 1))))


@pytest.mark.parametrize("method", METHODS)
def test_jit_vmap_and_nested_vmap_are_the_plain_call(small, method):
    points = batch(small, 4)
    # To 1e-13, since the float32 steps that come first round otherwise in a batch: sweeps to tol leave less than tol.
    solve = functools.partial(gridjax.solve, method=method, tol=1e-13)
    plain = [(solve(small, pick(points, 0)), 0)] if method == "sweep" else []
    single = jit(solve)
    loop = [single(small, pick(points, i)) for i in range(4)]
    flat = jit(jax.vmap(solve, in_axes=(None, 0)))(small, points)
    squared = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), points)
    nested = jit(jax.vmap(jax.vmap(solve, in_axes=(None, 0)), in_axes=(None, 0)))(small, squared)
    nested = jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), nested)
    plain += [(x, i) for i, x in enumerate(loop)]
    for (one, i), many in itertools.product(plain, (flat, nested)):
        np.testing.assert_allclose(many.v[i], one.v, atol=1e-13, rtol=0)
        np.testing.assert_allclose(many.residual[i], one.residual, atol=1e-13, rtol=0)
        assert abs(int(many.iterations[i]) - int(one.iterations)) <= 1
        assert many.converged[i] and one.converged
    assert len({x.iterations.item() for x in loop}) > 1 or method == "newton"


def test_fields_may_be_batched_one_by_one(small):
    """Only the loads have a batch axis; and only the source."""
    points = batch(small)
    axes = gridjax.OperatingPoint(**{f.name: None for f in dataclasses.fields(points)})
    for name in ("load_kw", "source_pu"):
        mixed = small.nominal.replace(**{name: getattr(points, name)})
        flows = jit(jax.vmap(gridjax.solve, in_axes=(None, axes.replace(**{name: 0}))))(small, mixed)
        for i in range(2):
            single = small.nominal.replace(**{name: getattr(points, name)[i]})
            np.testing.assert_allclose(flows.v[i], SOLVE["sweep"](small, single).v, atol=1e-13, rtol=0)


def test_other_values_do_not_trace_again(small):
    traces = []

    def solve(grid, point):
        traces.append(point)
        return gridjax.solve(grid, point).v

    compiled = jit(jax.vmap(solve, in_axes=(None, 0)))
    first = compiled(small, batch(small, seed=1))
    second = compiled(jax.tree.map(lambda a: a, small), batch(small, seed=2))
    assert len(traces) == 1
    assert not np.allclose(first, second)


def test_vmap_over_grids(small):
    """Grids of one shape, stacked: a line of another length, and loads with another law."""
    feeder = three_circuits()
    other = feeder.replace(
        lines=(dataclasses.replace(feeder.lines[0], length=2.0),),
        loads=tuple(dataclasses.replace(x, model=5) for x in feeder.loads),
    )
    grids = [small, gridjax.compile(other)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *grids)
    flows = jit(jax.vmap(functools.partial(gridjax.solve, method="newton")))(stacked, stacked.nominal)
    for i, grid in enumerate(grids):
        single = SOLVE["newton"](grid, grid.nominal)
        np.testing.assert_allclose(flows.v[i], single.v, atol=1e-13, rtol=0)
        assert flows.converged[i]
    shared = jit(jax.vmap(gridjax.solve, in_axes=(0, None)))(stacked, small.nominal)
    np.testing.assert_allclose(shared.v, flows.v, atol=1e-7, rtol=0)
    assert np.abs(flows.v[0] - flows.v[1]).max() > 0.01


# --- Failures. ---


@pytest.mark.parametrize("method", METHODS)
def test_failures_are_reported_and_leave_the_others_alone(small, method):
    """Impossible, infinite and meaningless loads among possible ones."""
    kva = np.array([100.0, 200.0, 300.0, 400.0, 500.0, 600.0]) * DIRECTION
    bad = kva.copy()
    bad[[1, 3, 4]] = 1e5 * DIRECTION, complex(np.nan, 0), complex(np.inf, 0)
    solve = functools.partial(solver(method, tol=1e-10, max_iterations=100), small)
    good_flows, flows = solve(loads_of(small, kva)), solve(loads_of(small, bad))
    impossible = method == "newton" and bool(flows.converged[1])  # it may find the impedance far below the limits
    assert flows.converged.tolist() == [True, impossible, True, False, False, True]
    assert good_flows.converged.all()
    untouched = [0, 2, 5]
    for name in ("v", "iterations", "residual"):
        a, b = np.asarray(getattr(flows, name)), np.asarray(getattr(good_flows, name))
        assert np.array_equal(a[untouched], b[untouched]), name
    assert not (flows.residual <= 1e-10)[jnp.array([3, 4])].any()


@pytest.mark.parametrize("field", ["load_kw", "load_kvar", "source_pu"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_meaningless_number_never_converges(small, field, value, method):
    point = small.nominal.replace(**{field: getattr(small.nominal, field).at[0].set(value)})
    assert not SOLVE[method](small, point).converged


@pytest.mark.parametrize(("method", "limit"), [("sweep", 3), ("newton", 1), ("sweep", 1)])
def test_running_out_of_iterations_is_not_convergence(small, method, limit):
    point = pick(loads_of(small, [1500.0 * DIRECTION]), 0)
    flow = gridjax.solve(small, point, method=method, max_iterations=limit, tol=1e-12)
    assert not flow.converged
    assert flow.iterations == limit
    assert flow.residual > 1e-12


def test_wrong_calls_say_what_to_do(small):
    n = small.nominal
    with pytest.raises(ValueError, match=r"method 'gauss' is unknown: choose one of \['auto', 'newton', 'sweep'\]"):
        gridjax.solve(small, n, method="gauss")
    for tol in (0.0, -1e-8, float("nan")):
        with pytest.raises(ValueError, match="tol must be positive"):
            gridjax.solve(small, n, tol=tol)
    for name in ("load_kw", "source_pu", "tap"):
        wrong = n.replace(**{name: jnp.ones((2, *getattr(n, name).shape))})
        with pytest.raises(ValueError, match=rf"point.{name} has shape \(2, .*needs .*jax.vmap\(gridjax.solve"):
            gridjax.solve(small, wrong)


@pytest.mark.parametrize("method", METHODS)
def test_what_hangs_behind_an_open_series_bank_is_not_invented(method):
    feeder = every_element_feeder()
    series = np.array([c.bus2 is not None and not c.bus2.endswith(".0") for c in feeder.capacitors for _ in c.kvar])
    assert series.any()
    grid = gridjax.compile(feeder)
    opened = grid.nominal.replace(capacitor=jnp.where(series, 0.0, grid.nominal.capacitor))
    flow = gridjax.solve(grid, opened, method=method)
    assert not flow.converged
    assert flow.residual == jnp.inf
    assert gridjax.solve(grid, grid.nominal, method=method).converged
