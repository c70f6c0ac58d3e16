"""Primitive admittance matrices against the OpenDSS engine, element by element."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dss import DSS
from jax.flatten_util import ravel_pytree

from gridjax import admittance
from gridjax.feeder import (
    KM_PER_UNIT,
    Admittance,
    Bus,
    Capacitor,
    Feeder,
    Geometry,
    Line,
    LineCode,
    Reactor,
    SequenceCode,
    Source,
    Switch,
    Transformer,
    Winding,
    Wire,
)
from gridjax.line_constants import bessel_quotient

DRAWS = 20
TOLERANCE = 1e-10
# What outlives a `clear` in the engine, for the tests after these.
DEFAULTS = ("set earthmodel=deri", "set defaultbasefrequency=60")
PHASE_NODES = {1: ".2", 2: ".1.3", 3: ".1.2.3", 4: ".1.2.3.4"}


def feeder(frequency_hz=60.0, **tables) -> Feeder:
    return Feeder("test", frequency_hz, buses=(), sources=(), **tables)


def engine_yprim(element: str, *commands: str, frequency_hz: float = 60.0) -> np.ndarray:
    """The engine's matrix of an element in a circuit made by `commands`."""
    for command in (
        "clear",
        f"set defaultbasefrequency={frequency_hz!r}",
        "new circuit.c basekv=12.47 bus1=head",
        *commands,
    ):
        DSS.Text.Command = command
    DSS.ActiveCircuit.Solution.BuildYMatrix(1, 0)
    assert DSS.ActiveCircuit.SetActiveElement(element) >= 0
    flat = np.array(DSS.ActiveCircuit.ActiveCktElement.Yprim).view(complex).ravel()
    for command in DEFAULTS:
        DSS.Text.Command = command
    m = math.isqrt(flat.size)
    return flat.reshape(m, m).T  # the engine stores columns


@functools.cache
def compiled(static: tuple):
    return jax.jit(functools.partial(admittance.primitive, static))


def matrix(feeder: Feeder, element) -> np.ndarray:
    description = admittance.describe(feeder, element)
    params = {key: jnp.asarray(value) for key, value in description.params.items()}
    if isinstance(element, Transformer):  # of which each draw has its own static
        y = np.array(admittance.primitive(description.static, params))
    else:
        y = np.array(compiled(description.static)(params))
    assert y.shape == (len(description.conductors),) * 2
    return y


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest entry."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_agree(ours, theirs, tolerance=TOLERANCE, symmetric=True):
    assert difference(ours, theirs) <= tolerance
    assert symmetric == (difference(ours, ours.T) <= 1e-12)


def draws(seed: int):
    return [np.random.default_rng([seed, k]) for k in range(DRAWS)]


def positive(rng, low, high) -> float:
    """A number between two bounds, evenly in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def spd(rng, n, scale) -> tuple:
    """A well-conditioned symmetric matrix with positive eigenvalues."""
    a = rng.normal(size=(n, n))
    return tuple(map(tuple, (scale * (np.eye(n) + 0.1 * (a @ a.T) / n)).tolist()))


def rows(m) -> str:
    return "[" + " | ".join(" ".join(repr(float(x)) for x in row) for row in m) + "]"


def numbers(values) -> str:
    return "[" + " ".join(repr(float(x)) for x in values) + "]"


# --- Lines. ---


def random_line(rng, n: int, code: str) -> Line:
    unit = str(rng.choice(list(KM_PER_UNIT)))
    length = positive(rng, 0.05, 5) / (1 if unit == "none" else KM_PER_UNIT[unit])
    return Line("l", "a" + PHASE_NODES[n], "b" + PHASE_NODES[n], code, length, unit)


def line_command(line: Line) -> str:
    return f"new line.l bus1={line.bus1} bus2={line.bus2} linecode={line.code} length={line.length!r} units={line.unit}"


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_line_with_matrices(n):
    for rng in draws(10 + n):
        f = float(rng.choice([50.0, 60.0]))
        code = LineCode("k", spd(rng, n, 0.3), spd(rng, n, 0.6), spd(rng, n, 9.0), str(rng.choice(["km", "mi"])))
        line = random_line(rng, n, "k")
        command = (
            f"new linecode.k nphases={n} units={code.unit} "
            f"rmatrix={rows(code.r)} xmatrix={rows(code.x)} cmatrix={rows(code.c)}"
        )
        theirs = engine_yprim("line.l", command, line_command(line), frequency_hz=f)
        assert_agree(matrix(feeder(f, codes=(code,), lines=(line,)), line), theirs)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_line_with_sequence_values(n):
    for rng in draws(20 + n):
        f = float(rng.choice([50.0, 60.0]))
        keys = ("r1", "x1", "r0", "x0", "c1", "c0")
        values = dict(zip(keys, rng.uniform(0.1, 1, 6) * [1, 1, 3, 3, 9, 5], strict=True))
        values = {key: float(value) for key, value in values.items()}
        code = SequenceCode("k", n, **values, unit=str(rng.choice(list(KM_PER_UNIT))))
        line = random_line(rng, n, "k")
        command = f"new linecode.k nphases={n} units={code.unit} " + " ".join(
            f"{key}={value!r}" for key, value in values.items()
        )
        theirs = engine_yprim("line.l", command, line_command(line), frequency_hz=f)
        assert_agree(matrix(feeder(f, codes=(code,), lines=(line,)), line), theirs)


def random_geometry(rng, phases: int, n: int, model: str) -> tuple[Geometry, tuple[Wire, ...]]:
    wires = []
    for k in range(n):
        radius = positive(rng, 2e-3, 2e-2)
        r_dc = positive(rng, 0.03, 3)
        cap_radius = radius * float(rng.uniform(1, 3)) if rng.random() < 0.5 else None
        wires.append(
            Wire(
                f"w{k}",
                r_dc,
                r_dc * 1.02,
                radius * float(rng.uniform(0.7, 0.8)),
                radius,
                cap_radius,
            )
        )
    x = tuple((np.arange(n) * 0.9 + rng.uniform(-0.2, 0.2, n)).tolist())
    h = tuple(rng.uniform(6, 12, n).tolist())
    rho = positive(rng, 10, 2000)
    names = tuple(w.name for w in wires)
    return Geometry("g", phases, names, x, h, rho, model), tuple(wires)


def geometry_commands(g: Geometry, wires: tuple[Wire, ...]) -> list[str]:
    commands = [f"set earthmodel={g.earth_model}"]
    for w in wires:
        cap = "" if w.cap_radius_m is None else f" capradius={w.cap_radius_m!r}"
        commands.append(
            f"new wiredata.{w.name} rdc={w.r_dc_ohm_per_km!r} rac={w.r_ac_ohm_per_km!r} runits=km "
            f"gmrac={w.gmr_m!r} gmrunits=m radius={w.radius_m!r} radunits=m{cap}"
        )
    places = " ".join(
        f"cond={k + 1} wire={name} x={g.x_m[k]!r} h={g.h_m[k]!r} units=m" for k, name in enumerate(g.wires)
    )
    n = len(g.wires)
    commands.append(f"new linegeometry.g nconds={n} nphases={g.phases} reduce=y {places}")
    return commands


@pytest.mark.parametrize(
    ("phases", "conductors", "model"),
    [
        *((*shape, "deri") for shape in ((1, 1), (1, 2), (2, 4), (3, 3), (3, 4))),
        *((*shape, model) for shape in ((1, 2), (3, 4)) for model in ("carson", "fullcarson")),
    ],
)
def test_line_with_geometry(phases, conductors, model):
    for rng in draws(30 + conductors):
        # Below 40 Hz the internal impedance comes from the wire and not from the GMR.
        f = float(rng.choice([25.0, 50.0, 60.0]))
        geometry, wires = random_geometry(rng, phases, conductors, model)
        line = random_line(rng, phases, "g")
        command = (
            f"new line.l bus1={line.bus1} bus2={line.bus2} geometry=g length={line.length!r} "
            f"units={line.unit} rho={geometry.rho_ohm_m!r}"
        )
        commands = [*geometry_commands(geometry, wires), command]
        theirs = engine_yprim("line.l", *commands, frequency_hz=f)
        ours = matrix(feeder(f, codes=(geometry,), wires=wires, lines=(line,)), line)
        assert_agree(ours, theirs)


def test_bessel_quotient():
    special = pytest.importorskip("scipy.special")
    a = np.concatenate([[1e-6, 1e-3], np.linspace(0.01, 28, 400)])
    s = (1 + 1j) * a
    expected = s * special.ive(0, s) / special.ive(1, s)
    ours = np.asarray(bessel_quotient(jnp.asarray(s**2)))
    assert np.abs(ours / expected - 1).max() < 1e-13
    slope = jax.jacfwd(lambda z: bessel_quotient(1j * z).imag)(jnp.asarray(0.0))
    np.testing.assert_allclose(slope, 0.25, rtol=1e-14)


# --- Switches. ---


@pytest.mark.parametrize("n", [1, 3])
def test_switch(n):
    for rng in draws(40 + n):
        r, x = positive(rng, 1e-6, 1e-2), positive(rng, 1e-6, 1e-2)
        switch = Switch("s", "a" + PHASE_NODES[n], "b" + PHASE_NODES[n], True, r, x)
        command = (
            f"new line.l phases={n} bus1={switch.bus1} bus2={switch.bus2} "
            f"r1={r!r} x1={x!r} r0={r!r} x0={x!r} c1=0 c0=0 length=1"
        )
        assert_agree(matrix(feeder(), switch), engine_yprim("line.l", command))
        opened = dataclasses.replace(switch, closed=False)
        assert not matrix(feeder(), opened).any()
        assert admittance.describe(feeder(), opened).static == admittance.describe(feeder(), switch).static


# --- Transformers. ---

WYE, DELTA = "wye", "delta"
NODES = {
    (1, WYE): ".1.0",
    (1, DELTA): ".1.2",
    (2, WYE): ".1.2.0",
    (2, DELTA): ".1.2.3",
    (3, WYE): ".1.2.3.4",
    (3, DELTA): ".1.2.3",
}
CONNECTIONS = [
    (1, (WYE, WYE)),
    (1, (DELTA, WYE)),
    (1, (WYE, WYE, WYE)),
    (2, (WYE, DELTA)),
    (2, (DELTA, WYE)),
    (2, (DELTA, DELTA)),
    (2, (WYE, WYE)),
    (3, (WYE, WYE)),
    (3, (WYE, DELTA)),
    (3, (DELTA, WYE)),
    (3, (DELTA, DELTA)),
    (3, (DELTA, WYE, WYE)),
    (3, (WYE, DELTA, DELTA)),
    (3, (WYE, WYE, DELTA)),
    (3, (WYE, DELTA, WYE, DELTA)),
]


def random_transformer(rng, phases: int, connections: tuple[str, ...]) -> Transformer:
    w = len(connections)
    windings = []
    kva = positive(rng, 10, 5000)
    for i, connection in enumerate(connections):
        r_neutral = [None, 0.0, positive(rng, 0.1, 50)][int(rng.integers(3))]
        x_neutral = 0.0
        if connection == DELTA:
            r_neutral = None
        elif r_neutral:
            x_neutral = float(rng.choice([0.0, 3.7]))
        windings.append(
            Winding(
                bus=f"b{i}" + NODES[phases, connection],
                connection=connection,
                kv=positive(rng, 0.2, 120),
                # The rating is winding 1's; of two windings the engine makes both alike.
                kva=kva if i == 0 or w == 2 else 0.7 * kva,
                r_percent=float(rng.uniform(0.1, 1.5)),
                tap=float(rng.uniform(0.9, 1.1)),
                r_neutral_ohm=r_neutral,
                x_neutral_ohm=x_neutral,
            )
        )
    # Impedances of a star, so that no pair contradicts the others.
    star = rng.uniform(1, 6, w)
    x = tuple(float(star[i] + star[j]) for i in range(w) for j in range(i + 1, w))
    return Transformer(
        "t",
        phases,
        tuple(windings),
        x,
        no_load_loss_percent=float(rng.choice([0.0, 0.4])),
        magnetizing_percent=float(rng.choice([0.0, 1.1])),
        antifloat_ppm=float(rng.choice([0.0, 1.0, 20.0])),
        lead_lag=str(rng.choice(["lead", "lag"])),
    )


def transformer_command(t: Transformer) -> str:
    parts = [
        f"new transformer.t phases={t.phases} windings={len(t.windings)}",
        f"xscarray={numbers(t.x_percent)} %noloadloss={t.no_load_loss_percent!r}",
        f"%imag={t.magnetizing_percent!r} ppm_antifloat={t.antifloat_ppm!r} leadlag={t.lead_lag}",
    ]
    for i, v in enumerate(t.windings, 1):
        parts.append(
            f"wdg={i} bus={v.bus} conn={v.connection} kv={v.kv!r} kva={v.kva!r} %r={v.r_percent!r} tap={v.tap!r}"
        )
        if v.r_neutral_ohm is not None:
            parts.append(f"rneut={v.r_neutral_ohm!r} xneut={v.x_neutral_ohm!r}")
    return " ".join(parts)


def engine_transformer(t: Transformer) -> np.ndarray:
    """The engine's matrix without the conductor that a three-phase delta does not use."""
    theirs = engine_yprim("transformer.t", transformer_command(t))
    per_winding = t.phases + 1
    unused = [per_winding * i + 3 for i, v in enumerate(t.windings) if t.phases == 3 and v.connection == DELTA]
    assert not theirs[unused].any()
    kept = np.setdiff1d(np.arange(len(theirs)), unused)
    return theirs[np.ix_(kept, kept)]


@pytest.mark.parametrize(("phases", "connections"), CONNECTIONS)
def test_transformer(phases, connections):
    seed = 50 + CONNECTIONS.index((phases, connections))
    for rng in draws(seed):
        t = random_transformer(rng, phases, connections)
        theirs = engine_transformer(t)
        ours = matrix(feeder(), t)
        # A solid neutral's 1e6 S would hide all the rest: compare it apart.
        for k in np.flatnonzero(np.abs(np.diag(theirs)) > 9e5):
            assert abs(ours[k, k] / theirs[k, k] - 1) <= TOLERANCE
            ours[k, k] = theirs[k, k] = 0
        assert_agree(ours, theirs)


@pytest.mark.parametrize("connection", [WYE, DELTA])
@pytest.mark.parametrize("phases", [1, 2, 3])
def test_antifloat_alone(phases, connection):
    """With an impedance of 1e9 percent the shunts to ground are all that is left."""
    for rng in draws(70 + phases):
        t = random_transformer(rng, phases, (connection, connection))
        t = dataclasses.replace(
            t,
            x_percent=(1e12,),
            windings=tuple(dataclasses.replace(v, r_neutral_ohm=None) for v in t.windings),
            no_load_loss_percent=0.0,
            magnetizing_percent=0.0,
            antifloat_ppm=3.0,
        )
        assert_agree(matrix(feeder(), t), engine_transformer(t))


def test_center_tapped():
    for rng in draws(80):
        t = random_transformer(rng, 1, (WYE, WYE, WYE))
        places = ("x.2.0", "y.1.0", "y.0.2")
        volts = (7.2, 0.12, 0.12)
        windings = tuple(
            dataclasses.replace(v, bus=bus, kv=kv) for v, bus, kv in zip(t.windings, places, volts, strict=True)
        )
        t = dataclasses.replace(t, windings=windings)
        assert_agree(matrix(feeder(), t), engine_transformer(t))
        conductors = admittance.describe(feeder(), t).conductors
        assert conductors == ("x.2", "x.0", "y.1", "y.0", "y.0", "y.2")


def test_transformer_is_its_parts():
    """Taps act on the windings and not on the ties to ground."""
    t = random_transformer(np.random.default_rng(81), 3, (DELTA, WYE))
    static, params = (d := admittance.describe(feeder(), t)).static, d.params
    y1 = np.asarray(admittance.winding_admittance(static, params))
    ground = np.asarray(admittance.ground_admittance(static, params))
    b = admittance.incidence(static)
    assert b.shape == (3, 2, 7)
    turns = np.diag(1 / params["tap"])
    expected = sum(bk.T @ turns @ y1 @ turns @ bk for bk in b) + np.diag(ground)
    np.testing.assert_allclose(matrix(feeder(), t), expected, rtol=1e-12, atol=1e-18)
    other = params | {"tap": np.array([0.95, 1.03])}
    np.testing.assert_array_equal(admittance.winding_admittance(static, other), y1)
    np.testing.assert_array_equal(admittance.ground_admittance(static, other), ground)


# --- Capacitors. ---


def random_capacitor(rng, phases: int, connection: str, steps: int, series: bool) -> Capacitor:
    nodes = PHASE_NODES[phases] if connection == WYE else NODES[phases, DELTA]
    return Capacitor(
        "c",
        "a" + nodes,
        phases,
        connection,
        positive(rng, 0.2, 70),
        kvar=tuple(rng.uniform(50, 900, steps).tolist()),
        closed=(True, *(bool(b) for b in rng.integers(0, 2, steps - 1))),
        bus2="n" + nodes if connection == WYE else None,
        r_ohm=tuple(rng.uniform(0.1, 2, steps).tolist()) if series else (),
        xl_ohm=tuple(rng.uniform(0.1, 2, steps).tolist()) if series else (),
    )


def capacitor_command(c: Capacitor) -> str:
    """In microfarads: given kvar, the engine makes every step as large as the first."""
    volts = c.kv * 1e3 / (math.sqrt(3) if c.connection == WYE and c.phases > 1 else 1)
    per_step = np.array(c.kvar) * 1e3 / c.phases / volts**2 / (2 * math.pi * 60)
    second = "" if c.bus2 is None else f"bus2={c.bus2}"
    return " ".join(
        [
            f"new capacitor.c bus1={c.bus1} {second} phases={c.phases} conn={c.connection}",
            f"kv={c.kv!r} numsteps={len(c.kvar)} cuf={numbers(per_step * 1e6)}",
            f"r={numbers(c.r_ohm)} xl={numbers(c.xl_ohm)}" if c.r_ohm else "",
            f"states={numbers(c.closed)}",
        ]
    )


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("connection", [WYE, DELTA])
@pytest.mark.parametrize("phases", [1, 2, 3])
def test_capacitor(phases, connection, steps):
    for rng in draws(90 + 10 * phases + steps):
        c = random_capacitor(rng, phases, connection, steps, series=False)
        # The engine does not clear a delta's steps: of two it counts the first one twice.
        if connection == WYE or steps == 1:
            theirs = engine_yprim("capacitor.c", capacitor_command(c))
            assert_agree(matrix(feeder(), c), theirs)
        total = sum(q for q, on in zip(c.kvar, c.closed, strict=True) if on)
        equal = f"kv={c.kv!r} kvar={total!r}"
        second = "" if c.bus2 is None else f"bus2={c.bus2}"
        command = f"new capacitor.c bus1={c.bus1} {second} phases={phases} conn={connection} {equal}"
        assert_agree(matrix(feeder(), c), engine_yprim("capacitor.c", command))


@pytest.mark.parametrize(
    ("phases", "connection", "tolerance"),
    # In a delta the engine adds a millionth of itself to the diagonal before it inverts.
    [
        (1, WYE, TOLERANCE),
        (2, WYE, TOLERANCE),
        (3, WYE, TOLERANCE),
        (1, DELTA, 1e-5),
        (3, DELTA, 1e-5),
    ],
)
def test_capacitor_with_series_impedance(phases, connection, tolerance):
    for rng in draws(130 + phases):
        c = random_capacitor(rng, phases, connection, 3 if connection == WYE else 1, series=True)
        # Reactances of a few percent, so that a missing factor 3 shows.
        ohm = (c.kv**2 / np.array(c.kvar) * 1e3 * 0.05).tolist()
        c = dataclasses.replace(c, r_ohm=tuple(x / 5 for x in ohm), xl_ohm=tuple(ohm))
        theirs = engine_yprim("capacitor.c", capacitor_command(c))
        assert_agree(matrix(feeder(), c), theirs, tolerance)


# --- Reactors and sources. ---


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("connection", [WYE, DELTA])
@pytest.mark.parametrize("phases", [1, 2, 3])
def test_reactor(phases, connection, parallel):
    for rng in draws(140 + phases):
        nodes = PHASE_NODES[phases] if connection == WYE else NODES[phases, DELTA]
        r, x, rp = (positive(rng, 0.01, 100) for _ in range(3))
        second = "n" + nodes if connection == WYE else None
        reactor = Reactor("r", "a" + nodes, phases, connection, r, x, rp if parallel else None, second)
        command = (
            f"new reactor.r bus1={reactor.bus1} {f'bus2={second}' if second else ''} "
            f"phases={phases} conn={connection} r={r!r} x={x!r} {f'rp={rp!r}' if parallel else ''}"
        )
        assert_agree(matrix(feeder(), reactor), engine_yprim("reactor.r", command))


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_source(n, negative):
    for rng in draws(150 + n):
        r1, x1, r2, x2, r0, x0 = (rng.uniform(0.1, 3, 6)).tolist()
        z2 = dict(r2_ohm=r2, x2_ohm=x2) if negative else {}
        source = Source("v", "q" + PHASE_NODES[n], 7.2, 1.02, 30.0, r1, x1, r0_ohm=r0, x0_ohm=x0, **z2)
        second = f"z2=[{r2!r} {x2!r}]" if negative else f"z2=[{r1!r} {x1!r}]"
        command = (
            f"new vsource.v bus1={source.bus} phases={n} basekv=7.2 z1=[{r1!r} {x1!r}] z0=[{r0!r} {x0!r}] {second}"
        )
        theirs = engine_yprim("vsource.v", command)[:n, :n]
        assert_agree(matrix(feeder(), source), theirs, symmetric=not (negative and n == 3))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_source_from_short_circuit(n):
    for rng in draws(160 + n):
        kv, sc3 = positive(rng, 0.4, 230), positive(rng, 20, 3000)
        sc1, x1r1, x0r0 = sc3 * rng.uniform(0.5, 1.3), rng.uniform(1, 10), rng.uniform(1, 10)
        source = admittance.source_from_short_circuit(
            "v", "q" + PHASE_NODES[n], kv, sc3, float(sc1), float(x1r1), float(x0r0)
        )
        command = (
            f"new vsource.v bus1={source.bus} phases={n} basekv={kv!r} mvasc3={sc3!r} "
            f"mvasc1={float(sc1)!r} x1r1={float(x1r1)!r} x0r0={float(x0r0)!r}"
        )
        assert_agree(matrix(feeder(), source), engine_yprim("vsource.v", command)[:n, :n])


def test_source_needs_a_reachable_power():
    with pytest.raises(ValueError, match=r"'v'.*mva_sc1"):
        admittance.source_from_short_circuit("v", "q.1.2.3", 12.47, mva_sc3=100, mva_sc1=1000)


# --- Transformations. ---


def one_of_each() -> dict[str, tuple[Feeder, object]]:
    rng = np.random.default_rng(7)
    code = LineCode("m", spd(rng, 3, 0.3), spd(rng, 3, 0.6), spd(rng, 3, 9.0), "mi")
    sequence = SequenceCode("q", 3, 0.3, 0.6, 0.9, 1.7, 9.0, 4.0)
    geometries, wires = {}, ()
    for model in ("deri", "carson", "fullcarson"):
        g, wires = random_geometry(np.random.default_rng(8), 3, 4, model)
        geometries[model] = dataclasses.replace(g, name=model)
    f = feeder(codes=(code, sequence, *geometries.values()), wires=wires)
    unit = random_transformer(rng, 3, (DELTA, WYE, WYE))
    windings = tuple(
        dataclasses.replace(v, kv=kv, r_neutral_ohm=rn, x_neutral_ohm=1.5)
        for v, kv, rn in zip(unit.windings, (12.47, 4.16, 2.4), (None, 2.0, None), strict=True)
    )
    unit = dataclasses.replace(
        unit,
        windings=windings,
        antifloat_ppm=2000.0,
        no_load_loss_percent=0.5,
        magnetizing_percent=1.0,
    )
    g, b = rng.normal(size=(2, 3, 3))
    elements = {
        f"line {name}": Line("l", "a.1.2.3", "b.1.2.3", name, 30e3, "m")
        for name in ("m", "q", "deri", "carson", "fullcarson")
    }
    elements |= {
        "switch": Switch("s", "a.1.2", "b.1.2", True, 0.01, 0.02),
        "transformer": unit,
        "capacitor wye": random_capacitor(rng, 3, WYE, 3, True),
        "capacitor delta": random_capacitor(rng, 3, DELTA, 3, True),
        "reactor": Reactor("r", "a.1.2.3", 3, DELTA, 1.0, 4.0, 90.0),
        "source": Source("v", "a.1.2.3", 7.2, 1, 0, 0.5, 2.0, 0.7, 3.0, 0.6, 2.3),
        "admittance": Admittance("y", ("a.1.2", "b.0"), tuple(map(tuple, g)), tuple(map(tuple, b))),
    }
    return {key: (f, element) for key, element in elements.items()}


EACH = one_of_each()
# The skin effect starts from the direct current's resistance, and Carson's models from the
# alternating current's; at power frequency the GMR stands for the radius.
UNUSED = {
    "line deri": {"r_ac_ohm_per_km", "radius_m"},
    "line carson": {"r_dc_ohm_per_km", "radius_m"},
    "line fullcarson": {"r_dc_ohm_per_km", "radius_m"},
}


@pytest.mark.parametrize("name", EACH)
def test_vmap_equals_loop(name):
    description = admittance.describe(*EACH[name])
    scales = np.random.default_rng(3).uniform(0.8, 1.2, 5)
    stacked = {
        key: np.stack([p if key == "frequency_hz" else p * s for s in scales]) for key, p in description.params.items()
    }
    one = functools.partial(admittance.primitive, description.static)
    together, by_one = jax.jit(jax.vmap(one))(stacked), compiled(description.static)
    for k in range(len(scales)):
        alone = by_one({key: p[k] for key, p in stacked.items()})
        assert difference(np.asarray(together[k]), np.asarray(alone)) < 1e-13


@pytest.mark.parametrize("name", EACH)
def test_gradient_against_differences(name):
    """Central differences of fourth order, h = 0.1 percent."""
    description = admittance.describe(*EACH[name])
    m = len(description.conductors)
    primitive = compiled(description.static)
    weights = np.random.default_rng(4).uniform(0.5, 1.5, (2, m, m)) * (1 + 2 * np.eye(m))

    def scalar(params):
        y = primitive(params)
        return (weights[0] * y.real + weights[1] * y.imag).sum()

    theta, unravel = ravel_pytree(jax.tree.map(jnp.asarray, description.params))
    h = 1e-3 * np.where(theta == 0, 1.0, np.abs(theta))
    f = {k: np.array([scalar(unravel(row)) for row in theta[None, :] + k * np.diag(h)]) for k in (-2, -1, 1, 2)}
    expected = unravel((8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h))
    gradient = jax.jit(jax.grad(scalar))(description.params)
    for key, got in gradient.items():
        if key in UNUSED.get(name, ()):
            assert not got.any()
        else:
            assert got.any(), key
            size = float(np.abs(expected[key]).max())
            np.testing.assert_allclose(got, expected[key], rtol=1e-6, atol=1e-6 * size, err_msg=key)


@pytest.mark.parametrize("name", EACH)
def test_follows_the_dtype(name):
    description = admittance.describe(*EACH[name])
    exact = matrix(*EACH[name])
    assert exact.dtype == np.complex128
    single = {key: np.float32(value) for key, value in description.params.items()}
    y = np.asarray(compiled(description.static)(single))
    assert y.dtype == np.complex64
    assert difference(y, exact) < 1e-4


def test_numpy_in_numpy_out():
    """What `compile` relies on: no JAX program, float64 without its flag, the same numbers."""
    for name in EACH:
        description = admittance.describe(*EACH[name])
        with jax.enable_x64(False):
            y = admittance.primitive(description.static, description.params)
        assert type(y) in (np.ndarray, np.complex128) and y.dtype == np.complex128
        assert difference(y, matrix(*EACH[name])) < 1e-13
        stacked = {k: np.stack([v, v]) for k, v in description.params.items()}
        assert difference(admittance.primitive(description.static, stacked)[1], y) < 1e-14


def test_without_x64():
    """Float64 tables on a machine that has only float32: no warning (they are errors here)."""
    with jax.enable_x64(False):
        for name in ("line q", "line deri", "transformer", "source", "capacitor wye"):
            static, params = (d := admittance.describe(*EACH[name])).static, jax.tree.map(jnp.asarray, d.params)
            assert admittance.primitive(static, params).dtype == np.complex64
        static, params = (d := admittance.describe(*EACH["transformer"])).static, jax.tree.map(jnp.asarray, d.params)
        assert admittance.winding_admittance(static, params).dtype == np.complex64
        assert admittance.ground_admittance(static, params).dtype == np.complex64


def test_linear_element_is_its_matrix():
    f, element = EACH["admittance"]
    np.testing.assert_array_equal(matrix(f, element), np.array(element.g) + 1j * np.array(element.b))
    assert admittance.describe(f, element).conductors == ("a.1", "a.2", "b.0")


# --- Refusals. ---

REFUSED = [
    (Line("l9", "a.1", "b.1", "none such", 1.0), "no code named"),
    (Line("l9", "a.1", "b.1", "m", 1.0), "3 phases, the terminals 1"),
    (Line("l9", "a.1.2.3", "b.1.2", "m", 1.0), "differ"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "m", 0.0), "length"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "m", 1.0, "league"), "league"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "m", math.nan), "length"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "lost wires", 1.0), "no wires named"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "one place", 1.0), "one place"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "flat", 1.0), "heights"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "wet", 1.0), "earth model"),
    (Line("l9", "a.1.2.3", "b.1.2.3", "ragged", 1.0), "3 by 3"),
    (Switch("s9", "a.1", "b.1", True, 0.0, 0.0), "both 0"),
    (Switch("s9", "a.1", "b.1.2"), "differ"),
    (Source("v9", "a.1.2.3", 7.2, x1_ohm=0.0), "both 0"),
    (Source("v9", "a.1.2.3", 7.2, x0_ohm=0.0), "both 0"),
    (Reactor("r9", "a.1", 1, WYE, 0.0, 0.0, None, "a.0"), "both 0"),
    (Reactor("r9", "a.1", 1, WYE, 1.0, 0.0), "bus2"),
    (Reactor("r9", "a.1.2.3", 3, DELTA, 1.0, 0.0, 0.0), "rp_ohm"),
    (Capacitor("c9", "a.1", 1, WYE, 2.4, (100.0,), (True, False), "a.0"), "closed"),
    (Capacitor("c9", "a.1.2", 1, WYE, 2.4, (100.0,), (True,), "a.0"), "differ"),
    (Capacitor("c9", "a.1.2", 3, DELTA, 2.4, (100.0,), (True,)), "3 nodes"),
    (Capacitor("c9", "a.1.2.3", 3, DELTA, 2.4, (100.0,), (True,), "a.0.0.0"), "bus2"),
    (Capacitor("c9", "a.1.2", 1, "star", 2.4, (100.0,), (True,)), "star"),
    (Capacitor("c9", "a.1.2.3", 2, DELTA, 2.4, (100.0,), (True,), None, (1.0,)), "two-phase delta"),
    (Admittance("y9", ("a.1", "b.1"), ((1.0,),), ((1.0,),)), "2 by 2"),
    (Bus("b9", 7.2, (1,)), "no primitive"),
]
UNIT = Transformer("t9", 3, (Winding("a.1.2.3", DELTA, 12.47, 500), Winding("b.1.2.3.0", WYE, 0.48, 500)), (5.0,))


def changed_winding(**changes):
    return dataclasses.replace(UNIT, windings=(UNIT.windings[0], dataclasses.replace(UNIT.windings[1], **changes)))


REFUSED += [
    (dataclasses.replace(UNIT, phases=4), "phases"),
    (dataclasses.replace(UNIT, windings=UNIT.windings[:1]), "two windings"),
    (dataclasses.replace(UNIT, x_percent=(5.0, 6.0)), "x_percent"),
    (dataclasses.replace(UNIT, lead_lag="neither"), "lead_lag"),
    (changed_winding(bus="b.1.2.3"), "4 nodes"),
    (changed_winding(tap=0.0), "tap"),
    (changed_winding(kv=0.0), "kv"),
    (changed_winding(r_percent=math.inf), "finite"),
]


@pytest.mark.parametrize(("element", "words"), REFUSED)
def test_refusals_name_the_element(element, words):
    f = EACH["line m"][0]
    deri = next(c for c in f.codes if c.name == "deri")
    codes = (
        *f.codes,
        dataclasses.replace(deri, name="lost wires", wires=("w0", "w1", "w2", "gone")),
        dataclasses.replace(deri, name="one place", x_m=(0.0,) * 4, h_m=(9.0,) * 4),
        dataclasses.replace(deri, name="flat", h_m=(0.0, 1.0, 2.0, 3.0)),
        dataclasses.replace(deri, name="wet", earth_model="sea"),
        LineCode("ragged", ((1.0,), (1.0,), (1.0,)), ((1.0,),), ((1.0,),)),
    )
    name = type(element).__name__
    pattern = words if name == "Bus" else f"{name} '{element.name}'.*{words}"
    with pytest.raises(ValueError, match=pattern):
        admittance.describe(f.replace(codes=codes), element)
