"""`solve` against closed forms and a dense nodal solver in NumPy; batches, transforms and failures."""

import dataclasses

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
    Switch,
    Transformer,
    Winding,
    split_terminal,
)
from gridjax.generation import pv_power, storage_power
from gridjax.powerflow.injections import Laws, factors, generator_law, load_law

TOL = 1e-13
METHODS = ("sweep", "newton")
TABLES = ("sources", "lines", "switches", "transformers", "capacitors", "reactors", "admittances")


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
            matrix = np.asarray(primitive(d.static, d.params)) * np.outer(volts[at], volts[at]) / 1e6
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
    factor = jax.jit(lambda v2: factors(laws, v2, True, True))
    v = linear(fixed)
    for _ in range(400):
        full = np.append(v.astype(complex), 0) * volts
        u = (full[ends[:, 0]] - full[ends[:, 1]]) / ratings
        fp, fq = (np.asarray(f) for f in factor(np.abs(u) ** 2))
        i = (powers.real * fp - 1j * powers.imag * fq) * u
        drawn = np.zeros(ground + 1, complex)
        np.add.at(drawn, ends[:, 0], i * volts[ends[:, 0]] / ratings)
        np.add.at(drawn, ends[:, 1], -i * volts[ends[:, 1]] / ratings)
        v, before = linear(fixed - drawn[:ground]), v
        if np.abs(v - before).max() < 1e-15:
            break
    assert np.abs(v - before).max() < 1e-13
    return v.astype(complex)


def random_points(grid, count: int, seed: int):
    """Operating points about the nominal one: taps within 10 %, fractional capacitor steps, sources within 3 %."""
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
        capacitor=jnp.asarray(rng.choice([0.0, 0.3, 1.0], (count, n.capacitor.shape[0]))),
        source_pu=about(n.source_pu, 0.97, 1.03),
    )


def pick(points, i):
    return jax.tree.map(lambda a: a[i], points)


def solver(grid, method="sweep", **options):
    options = {"tol": TOL, "max_iterations": 300} | options
    return jax.jit(jax.vmap(lambda p: gridjax.solve(grid, p, method=method, **options)))


def check_against_reference(feeder, count, seed, methods, atol=1e-11):
    """Random operating points of one feeder; returns points and voltages."""
    grid = gridjax.compile(feeder)
    points = random_points(grid, count, seed)
    for method in methods:
        flows = solver(grid, method)(points)
        assert flows.converged.all(), method
        for i in range(count):
            values = {f.name: np.asarray(getattr(points, f.name)[i]) for f in dataclasses.fields(points)}
            generation = (values["generation_kw"], values["generation_kvar"])
            expected = reference(written(feeder, **values), generation)
            np.testing.assert_allclose(flows.v[i], expected, atol=atol, rtol=0)
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
    transformers = tuple(  # without a floating side: the reference's digits would not suffice
        t if t.name != "floating" else dataclasses.replace(t, windings=(t.windings[0], Winding("m.1.2.3.0", "wye", 0.48, 75.0)))
        for t in f.transformers
    )
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
            *f.loads,
            Load("n2a", "n2.1.4", 1, "wye", 1, 0.277, 9.0, 3.0),
            Load("n2b", "n2.2.4", 1, "wye", 5, 0.277, 2.0, 1.0),
        ),
    )


def test_every_element_in_a_mesh_with_two_sources():
    feeder = meshed_feeder()
    _, flows = check_against_reference(feeder, 6, 0, METHODS)
    neutral = feeder.node_names.index("n2.4")
    assert (np.abs(flows.v[:, neutral]) > 1e-3).all()


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


def test_open_and_closed_switches():
    feeder = every_element_feeder()
    opened = feeder.replace(
        switches=tuple(dataclasses.replace(s, closed=not s.closed) for s in feeder.switches),
    )
    for each in (feeder, opened):
        grid = gridjax.compile(each)
        flow = jax.jit(lambda p, grid=grid: gridjax.solve(grid, p, tol=TOL))(grid.nominal)
        expected = reference(each)
        floating = np.array([name.startswith("m.") for name in each.node_names])
        np.testing.assert_allclose(flow.v[~floating], expected[~floating], atol=1e-11, rtol=0)
        np.testing.assert_allclose(flow.v[floating], expected[floating], atol=1e-7, rtol=0)


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
    return feeder, *check_against_reference(feeder, 8, 5, METHODS)


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
    again = solver(grid)(points)
    np.testing.assert_allclose(again.v, flows.v, atol=1e-11, rtol=0)
