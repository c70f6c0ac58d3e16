"""Small sound feeders, made by hand, for any test."""

from gridjax.feeder import (
    Admittance,
    Bus,
    Capacitor,
    CapacitorControl,
    Feeder,
    Generator,
    Geometry,
    Line,
    LineCode,
    Load,
    PVSystem,
    Reactor,
    Regulator,
    SequenceCode,
    Source,
    Storage,
    Switch,
    Transformer,
    Winding,
    Wire,
)

HIGH = 115 / 3**0.5
MIDDLE = 4.16 / 3**0.5
LOW = 0.48 / 3**0.5


def two_bus_feeder() -> Feeder:
    """A source, one three-phase line of 1 km, one balanced load."""
    return Feeder(
        name="two-bus",
        frequency_hz=60.0,
        buses=(Bus("a", MIDDLE, (1, 2, 3)), Bus("b", MIDDLE, (1, 2, 3))),
        sources=(Source("grid", "a.1.2.3", 4.16),),
        codes=(SequenceCode("seq", 3, 0.2, 0.4, 0.5, 1.2, 10.0, 5.0),),
        lines=(Line("l1", "a.1.2.3", "b.1.2.3", "seq", 1.0),),
        loads=(Load("s1", "b.1.2.3.0", 3, "wye", 1, 4.16, 300.0, 100.0),),
    )


def every_element_feeder() -> Feeder:
    """Every kind of element at least once, in the connections that real feeders use.

    src =sub= a =reg= r -l1- b -l2- c -l3- d -s1- f     s2 (open): f to b
    b -l4- e =service= t (120/240 V)   b -l5- e2 (two phases)
    d -cs- g   d -rs- h   h -y1- k   c =neutral= n (4: neutral with a grounding reactor)
    c =floating= m (delta without any ground)
    """
    return Feeder(
        name="every-element",
        frequency_hz=60.0,
        buses=_buses(),
        sources=(Source("grid", "src.1.2.3", 115.0, 1.02, 30.0, 0.3, 2.0, 0.6, 3.0),),
        codes=_codes(),
        wires=(
            Wire("acsr", 0.19, 0.2, 0.0074, 0.0092),
            Wire("small", 0.36, 0.37, 0.0025, 0.0072, cap_radius_m=0.007),
        ),
        lines=(
            Line("l1", "r.1.2.3", "b.1.2.3", "matrix", 0.61, rating_a=400.0),
            Line("l2", "b.1.2.3", "c.1.2.3", "sequence", 2000.0, "ft"),
            Line("l3", "c.1.2.3", "d.1.2.3", "overhead", 0.3),
            Line("l4", "b.2", "e.2", "single", 500.0, "none"),
            Line("l5", "b.3.1", "e2.3.1", "double", 0.2),
        ),
        switches=(
            Switch("s1", "d.1.2.3", "f.1.2.3"),
            Switch("s2", "f.1.2.3", "b.1.2.3", closed=False, rating_a=200.0),
        ),
        transformers=_transformers(),
        regulators=(Regulator("reg", "reg", 2, vreg=122.0, band=2.0, pt_ratio=20.0, monitored_bus="b.2"),),
        capacitors=(
            Capacitor("cw", "d.1.2.3", 3, "wye", 4.16, (200.0, 100.0), (True, False), "d.0.0.0"),
            Capacitor("c1", "e2.3", 1, "wye", 2.4, (50.0,), (True,), "e2.0", (0.1,), (0.0,)),
            Capacitor("cd", "c.1.2.3", 3, "delta", 4.16, (90.0,), (False,)),
            Capacitor("cs", "d.1.2.3", 3, "wye", 0.4, (900.0,), (True,), "g.1.2.3"),
        ),
        capacitor_controls=(CapacitorControl("cc", "cw", "kvar", "line.l3", 1, 100.0, -50.0, pt_ratio=20.0),),
        reactors=(
            Reactor("rs", "d.1.2.3", 3, "wye", 0.05, 0.4, bus2="h.1.2.3"),
            Reactor("rd", "c.1.2", 1, "delta", 0.0, 900.0, rp_ohm=1e5),
            Reactor("ground", "n.4", 1, "wye", 0.5, 0.0, bus2="n.0"),
        ),
        loads=_loads(),
        generators=(Generator("g1", "c.1.2.3.0", 3, "wye", 4.16, 60.0, 10.0, kva=100.0),),
        pv_systems=(
            PVSystem(
                "pv1",
                "t.1.0",
                1,
                "wye",
                0.12,
                6.0,
                5.0,
                power_curve=((0.0, 25.0, 75.0), (1.2, 1.0, 0.8)),
                efficiency_curve=((0.1, 1.0), (0.9, 0.97)),
            ),
        ),
        storages=(Storage("b1", "m.1.2.3", 3, "delta", 0.48, 30.0, 25.0, 50.0, 20.0, kw=5.0),),
        admittances=(_admittance(),),
        base_mva=5.0,
        origin="made by hand",
        licence="Apache-2.0",
    )


def _buses() -> tuple[Bus, ...]:
    middle = [Bus(name, MIDDLE, (1, 2, 3), float(i), 0.0) for i, name in enumerate("arbcdfghk")]
    return (
        Bus("src", HIGH, (1, 2, 3), -1.0, 0.0),
        *middle,
        Bus("e", MIDDLE, (2,)),
        Bus("e2", MIDDLE, (1, 3)),
        Bus("t", 0.12, (1, 2)),
        Bus("n", LOW, (1, 2, 3, 4)),
        Bus("m", LOW, (1, 2, 3)),
    )


def _codes() -> tuple[LineCode | SequenceCode | Geometry, ...]:
    return (
        LineCode(
            "matrix",
            ((0.22, 0.1, 0.1), (0.1, 0.21, 0.09), (0.1, 0.09, 0.21)),
            ((0.63, 0.31, 0.26), (0.31, 0.65, 0.24), (0.26, 0.24, 0.64)),
            ((9.0, -2.0, -1.0), (-2.0, 9.5, -1.5), (-1.0, -1.5, 8.5)),
        ),
        SequenceCode("sequence", 3, 0.06, 0.12, 0.18, 0.4, 3.4, 1.6, "kft"),
        LineCode("single", ((0.25e-3,),), ((0.26e-3,),), ((0.0,),), "ft"),
        LineCode(
            "double",
            ((0.8, 0.13), (0.13, 0.8)),
            ((0.84, 0.28), (0.28, 0.85)),
            ((7.0, -1.0), (-1.0, 7.0)),
        ),
        Geometry(
            "overhead",
            3,
            ("acsr", "acsr", "acsr", "small"),
            (0.0, 0.76, 2.13, 1.2),
            (8.5, 8.5, 8.5, 7.3),
        ),
    )


def _transformers() -> tuple[Transformer, ...]:
    return (
        Transformer(
            "sub",
            3,
            (
                Winding("src.1.2.3", "delta", 115.0, 5000.0, 0.5),
                Winding("a.1.2.3.0", "wye", 4.16, 5000.0, 0.5, r_neutral_ohm=0.0),
            ),
            (8.0,),
        ),
        Transformer(
            "reg",
            3,
            (
                Winding("a.1.2.3.0", "wye", 4.16, 5000.0, 0.01),
                Winding("r.1.2.3.0", "wye", 4.16, 5000.0, 0.01, tap=1.025),
            ),
            (0.1,),
        ),
        Transformer(
            "service",
            1,
            (
                Winding("e.2.0", "wye", 2.4, 25.0, 0.6),
                Winding("t.1.0", "wye", 0.12, 25.0, 1.2),
                Winding("t.0.2", "wye", 0.12, 25.0, 1.2),
            ),
            (2.04, 2.04, 1.36),
            no_load_loss_percent=0.2,
            magnetizing_percent=0.5,
        ),
        Transformer(
            "neutral",
            3,
            (
                Winding("c.1.2.3", "delta", 4.16, 150.0),
                Winding("n.1.2.3.4", "wye", 0.48, 150.0),
            ),
            (4.0,),
        ),
        Transformer(
            "floating",
            3,
            (Winding("c.1.2.3", "delta", 4.16, 75.0), Winding("m.1.2.3", "delta", 0.48, 75.0)),
            (3.0,),
            lead_lag="lead",
        ),
    )


def _loads() -> tuple[Load, ...]:
    return (
        Load("three", "d.1.2.3.0", 3, "wye", 1, 4.16, 300.0, 150.0),
        Load("delta", "f.1.2.3", 3, "delta", 5, 4.16, 90.0, 40.0),
        Load("between", "c.2.3", 1, "delta", 2, 4.16, 40.0, 20.0),
        Load("phase", "e2.1.0", 1, "wye", 4, 2.4, 30.0, 10.0, cvr_watts=0.8),
        Load("leg", "t.1.0", 1, "wye", 1, 0.12, 2.0, 0.5),
        Load("legs", "t.1.2", 1, "wye", 3, 0.24, 4.0, 1.0),
        Load("split", "t.1.2.0", 2, "wye", 1, 0.208, 4.0, 1.0, vmin_pu=0.88),
        Load("open", "k.1.2.3", 2, "delta", 6, 4.16, 12.0, 4.0),
        Load("four", "n.1.2.3.4", 3, "wye", 7, 0.48, 24.0, 9.0),
        Load("zip", "g.3.0", 1, "wye", 8, 2.4, 20.0, 8.0, zipv=(0.3, 0.3, 0.4, 0.2, 0.3, 0.5, 0.8)),
    )


def _admittance() -> Admittance:
    """0.5 S a phase, without coupling, from h to k."""
    signs = [[(i == j) - (abs(i - j) == 3) for j in range(6)] for i in range(6)]
    return Admittance(
        "y1",
        ("h.1.2.3", "k.1.2.3"),
        tuple(tuple(0.5 * sign for sign in row) for row in signs),
        tuple(tuple(-2.0 * sign for sign in row) for row in signs),
    )
