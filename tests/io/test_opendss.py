"""The OpenDSS reader and writer, against the engine itself on small circuits."""

import dataclasses
import os
import sys
import warnings

import numpy as np
import pytest

dss = pytest.importorskip("dss")

from gridjax.feeder import (
    Admittance,
    Capacitor,
    CapacitorControl,
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
    Winding,
    Wire,
)
from gridjax.io.opendss import read_opendss, write_opendss

HEAD = """
clear
new circuit.small basekv=12.47 bus1=Src pu=1.02 angle=30 mvasc3=200 mvasc1=210
"""
TAIL = """
set voltagebases=[12.47 0.48 0.208]
calcvoltagebases
solve
"""
LINE = "new line.main bus1=src bus2=b length=1 units=km r1=.1 x1=.3 r0=.4 x0=1 c1=10 c0=4\n"

ALL = """
new linecode.mtx nphases=2 units=mi rmatrix=[.4 | .1 .41] xmatrix=[.9 | .3 .91] cmatrix=[15 | -4 16]
new linecode.seq nphases=3 units=km r1=.2 x1=.4 r0=.5 x0=1.1 c1=12 c0=5
new linecode.one nphases=1 units=km r1=.2 x1=.4 r0=.5 x0=1.1 c1=12 c0=5
new wiredata.w rdc=.19 rac=.2 runits=km gmrac=7 gmrunits=mm radius=1 radunits=cm
new wiredata.n rdc=.3 rac=.31 runits=mi gmrac=.008 gmrunits=ft diam=.56 radunits=in
new linegeometry.g nconds=4 nphases=3 reduce=yes
~ cond=1 wire=w units=ft x=-4 h=28
~ cond=2 wire=w units=ft x=-1.5 h=28
~ cond=3 wire=w units=ft x=3 h=28
~ cond=4 wire=n units=m x=0 h=7.5
new line.geo bus1=src bus2=b geometry=g length=2 units=kft earthmodel=carson rho=60 normamps=321
new line.seq bus1=b bus2=c linecode=seq length=800 units=m
new line.mtx bus1=b.1.3 bus2=d.1.3 phases=2 linecode=mtx length=500 units=ft
new line.one bus1=b.2 bus2=d.2 phases=1 linecode=one length=.3 units=km
new line.sw bus1=c bus2=e switch=yes r1=1e-3 r0=1e-3 x1=2e-3 x0=2e-3 c1=0 c0=0
new transformer.t phases=3 windings=2 buses=[e f] conns=[delta wye] kvs=[12.47 .48] kvas=[500 500]
~ xhl=4 %rs=[.6 .7] %noloadloss=.2 %imag=.5 wdg=2 tap=1.0125
new transformer.vr phases=1 windings=2 buses=[e.2 r.2] kvs=[7.2 7.2] kvas=[800 800] xhl=.1 bank=BB
~ %loadloss=.01
new transformer.ct phases=1 windings=3 buses=[d.1 s.1.0 s.0.2] kvs=[7.2 .12 .12] kvas=[25 25 25]
~ %rs=[.6 1.2 1.2] xhl=2.04 xht=2.05 xlt=1.36
new transformer.ng4 phases=3 windings=2 buses=[e h4.1.2.3.4] conns=[wye wye] kvs=[12.47 .48]
~ kvas=[90 90] wdg=1 rneut=0 wdg=2 rneut=.5 xneut=.2 leadlag=lead ppm_antifloat=2
new regcontrol.rc transformer=vr winding=2 vreg=122 band=2 ptratio=60 ctprim=100 r=2 x=3 delay=30
~ maxtapchange=8 tapdelay=3
new capacitor.wye bus1=c kv=12.47 numsteps=2 kvar=[150 150] states=[1 0] r=[.1 .1] xl=[.2 .2]
new capacitor.del bus1=c.1.3 phases=1 conn=delta kv=12.47 kvar=60
new capacitor.uf bus1=c.2 phases=1 kv=7.2 cuf=2
new capcontrol.cc capacitor=wye element=line.geo terminal=1 type=kvar onsetting=9000
~ offsetting=-9000 delay=20 delayoff=25 deadtime=200 ptratio=50 ctratio=55 vmin=100 vmax=130
new reactor.shunt bus1=c kv=12.47 kvar=30
new reactor.series bus1=c bus2=q r=.1 x=.4 rp=50
new reactor.del bus1=c phases=3 conn=delta r=4000 x=9000
new reactor.one bus1=c.3 phases=1 r=9e4 x=8e4
new load.wye bus1=C phases=3 kv=12.47 kw=300 pf=.9 vminpu=.8
new load.del bus1=q phases=3 conn=delta kv=12.47 kw=90 kvar=30 model=5
new load.ll bus1=q.1.2 phases=1 conn=delta kv=12.47 kw=40 kvar=20 model=2
new load.two bus1=s.1.2 phases=2 kv=.208 kw=5 kvar=1 vmaxpu=1.2 vlowpu=.4
new load.n bus1=h4.1.4 phases=1 kv=.277 kw=3 kvar=1 model=4 cvrwatts=.8 cvrvars=1.7
new load.zip bus1=f phases=3 kv=.48 kw=60 kvar=20 model=8 zipv=[.2 .3 .5 .1 .4 .5 .6]
new load.r bus1=r.2 phases=1 kv=7.2 kw=500 kvar=260 model=1
new generator.g bus1=f phases=3 kv=.48 kw=20 kvar=-5 kva=31 vminpu=.8
new generator.z bus1=q.3 phases=1 kv=7.2 kw=15 kvar=2 model=2
new xycurve.eff npts=4 xarray=[.1 .2 .4 1] yarray=[.86 .9 .93 .97]
new xycurve.pt npts=3 xarray=[0 25 75] yarray=[1.2 1 .8]
new pvsystem.pv bus1=f phases=3 kv=.48 kva=50 pmpp=48 irradiance=.7 temperature=40 effcurve=eff
~ p-tcurve=pt kvar=11 kvarmax=30 %cutin=5 %cutout=4
new pvsystem.pf bus1=q.1 phases=1 kv=7.2 kva=20 pmpp=18 pf=.95
new storage.out bus1=f phases=3 kv=.48 kva=40 kwrated=30 kwhrated=90 %stored=60 kw=25 kvar=4
new storage.in bus1=f phases=3 kv=.48 kva=40 kwrated=30 kwhrated=90 %stored=60 kw=-12
new storage.idle bus1=f phases=3 kv=.48 kva=40 kwrated=30 kwhrated=90 %stored=60 state=idling
"""


def circuit(folder, body, head=HEAD, tail=TAIL, name="small.dss"):
    path = folder / name
    path.write_text(head + body + tail)
    return path


def read(folder, body, **kwargs):
    return read_opendss(circuit(folder, body, **kwargs))


def by_name(records):
    return {record.name: record for record in records}


def voltages(path, settle=True):
    """Per unit of the engine at tolerance 1e-12, by node."""
    engine = dss.DSS.NewContext()
    engine.AllowChangeDir = False
    try:
        engine.Text.Command = f'redirect "{path}"'
        ckt = engine.ActiveCircuit
        if settle:
            ckt.Solution.Solve()
        ckt.Solution.ControlMode = -1
        ckt.Solution.Tolerance = 1e-13
        ckt.Solution.MaxIterations = 1000
        try:
            ckt.Solution.Solve()
        except dss.DSSException as error:  # the tolerance is below what rounding allows
            assert "onverge" in str(error)
        v = np.array(ckt.AllBusVolts).view(complex)
        bases = [ckt.Buses(name.rpartition(".")[0]).kVBase * 1e3 for name in ckt.AllNodeNames]
        return dict(zip(ckt.AllNodeNames, v / bases, strict=True))
    finally:
        dss.DSS.AllowChangeDir = True


def assert_close(a, b, where=""):
    """Equal tables: numbers to 1e-12, records by name, a bus's nodes in any order."""
    if isinstance(a, tuple) and a and hasattr(a[0], "name"):
        assert by_name(a).keys() == by_name(b).keys(), where
        for name, record in by_name(a).items():
            assert_close(record, by_name(b)[name], f"{where}.{name}")
    elif dataclasses.is_dataclass(a):
        assert type(a) is type(b), where
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if field.name == "nodes":
                x, y = sorted(x), sorted(y)
            assert_close(x, y, f"{where}.{field.name}")
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), where
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, where)
    elif isinstance(a, float) and b is not None:
        assert a == pytest.approx(b, rel=1e-12, abs=1e-15), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    path = circuit(tmp_path_factory.mktemp("all"), ALL)
    return path, read_opendss(path)


def test_reads_sources_lines_and_codes(everything):
    _, feeder = everything
    assert (feeder.name, feeder.frequency_hz) == ("small", 60.0)
    x1 = 12.47**2 / 200 / (1 + 1 / 16) ** 0.5
    (source,) = feeder.sources
    assert_close(
        source,
        Source("source", "src.1.2.3", 12.47, 1.02, 30.0, x1 / 4, x1, source.r0_ohm, source.x0_ohm),
    )
    assert source.x0_ohm == pytest.approx(3 * source.r0_ohm, rel=1e-12)
    codes = by_name(feeder.codes)
    assert codes["mtx"] == LineCode(
        "mtx",
        ((0.4, 0.1), (0.1, 0.41)),
        ((0.9, 0.3), (0.3, 0.91)),
        ((15.0, -4.0), (-4.0, 16.0)),
        "mi",
    )
    assert codes["seq"] == SequenceCode("seq", 3, 0.2, 0.4, 0.5, 1.1, 12.0, 5.0, "km")
    assert codes["one"] == SequenceCode("one", 1, 0.2, 0.4, 0.5, 1.1, 12.0, 5.0, "km")
    geometry = Geometry(
        "g",
        3,
        ("w", "w", "w", "n"),
        (-4 * 0.3048, -1.5 * 0.3048, 3 * 0.3048, 0.0),
        (28 * 0.3048, 28 * 0.3048, 28 * 0.3048, 7.5),
        60.0,
        "carson",
    )
    assert_close(codes["g"], geometry)
    wires = by_name(feeder.wires)
    assert_close(wires["w"], Wire("w", 0.19, 0.2, 7e-3, 1e-2))
    assert_close(wires["n"], Wire("n", 0.3 / 1.609344, 0.31 / 1.609344, 0.008 * 0.3048, 0.28 * 0.0254))
    lines = by_name(feeder.lines)
    assert lines["geo"] == Line("geo", "src.1.2.3", "b.1.2.3", "g", 2.0, "kft", 321.0)
    assert lines["mtx"] == Line("mtx", "b.1.3", "d.1.3", "mtx", 500.0, "ft", 400.0)
    assert lines["one"] == Line("one", "b.2", "d.2", "one", 0.3, "km", 400.0)
    assert_close(feeder.switches, (Switch("sw", "c.1.2.3", "e.1.2.3", True, 1e-6, 2e-6, 400.0),))
    assert feeder.admittances == ()


def test_reads_transformers_and_regulators(everything):
    _, feeder = everything
    t = by_name(feeder.transformers)
    delta, wye = t["t"].windings
    assert_close(delta, Winding("e.1.2.3", "delta", 12.47, 500.0, 0.6))
    assert_close(wye, Winding("f.1.2.3.0", "wye", 0.48, 500.0, 0.7, tap=1.0125))
    assert (t["t"].no_load_loss_percent, t["t"].magnetizing_percent) == (0.2, 0.5)
    assert (t["t"].phases, t["t"].x_percent, t["t"].lead_lag) == (3, (4.0,), "lag")
    assert [w.bus for w in t["ct"].windings] == ["d.1.0", "s.1.0", "s.0.2"]
    assert t["ct"].x_percent == (2.04, 2.05, 1.36)
    assert [w.r_percent for w in t["ct"].windings] == [0.6, 1.2, 1.2]
    assert t["vr"].bank == "bb"
    ng = t["ng4"]
    assert (ng.lead_lag, ng.antifloat_ppm) == ("lead", 2.0)
    assert [w.r_neutral_ohm for w in ng.windings] == [0.0, 0.5]
    assert ng.windings[1].bus == "h4.1.2.3.4"
    assert ng.windings[1].x_neutral_ohm == 0.2
    assert feeder.regulators == (
        Regulator("rc", "vr", 2, 122.0, 2.0, 60.0, 100.0, 2.0, 3.0, 1, 30.0, 3.0, 8, voltage_limit=0.0),
    )


def test_taps_are_those_that_the_controls_settle_at(everything, tmp_path):
    path, feeder = everything
    settled = by_name(feeder.transformers)["vr"].windings[1].tap
    engine = dss.DSS.NewContext()
    engine.Text.Command = f'redirect "{path}"'
    engine.ActiveCircuit.Transformers.Name = "vr"
    engine.ActiveCircuit.Transformers.Wdg = 2
    assert settled == pytest.approx(engine.ActiveCircuit.Transformers.Tap, rel=1e-14)
    assert settled != 1.0
    untouched = circuit(tmp_path, ALL, tail=TAIL.replace("solve", ""))
    assert by_name(read_opendss(untouched).transformers)["vr"].windings[1].tap == settled
    unsettled = read_opendss(untouched, settle=False)
    assert by_name(unsettled.transformers)["vr"].windings[1].tap == 1.0


def test_reads_capacitors_reactors_and_their_control(everything):
    _, feeder = everything
    capacitors = by_name(feeder.capacitors)
    assert capacitors["wye"] == Capacitor(
        "wye",
        "c.1.2.3",
        3,
        "wye",
        12.47,
        (150.0, 150.0),
        (True, False),
        "c.0.0.0",
        (0.1, 0.1),
        (0.2, 0.2),
    )
    assert capacitors["del"] == Capacitor("del", "c.1.3", 1, "delta", 12.47, (60.0,), (True,))
    microfarads = 2 * np.pi * 60 * 2e-6 * 7.2**2 * 1e3
    assert_close(
        capacitors["uf"],
        Capacitor("uf", "c.2", 1, "wye", 7.2, (microfarads,), (True,), "c.0"),
    )
    assert feeder.capacitor_controls == (
        CapacitorControl(
            name="cc",
            capacitor="wye",
            kind="kvar",
            element="line.geo",
            terminal=1,
            on=9000.0,
            off=-9000.0,
            pt_ratio=50.0,
            ct_ratio=55.0,
            delay_s=20.0,
            delay_off_s=25.0,
            dead_time_s=200.0,
            vmin=100.0,
            vmax=130.0,
        ),
    )
    reactors = by_name(feeder.reactors)
    assert_close(
        reactors["shunt"],
        Reactor("shunt", "c.1.2.3", 3, "wye", 0.0, 12.47**2 / 0.03, None, "c.0.0.0"),
    )
    assert reactors["series"] == Reactor("series", "c.1.2.3", 3, "wye", 0.1, 0.4, 50.0, "q.1.2.3")
    assert reactors["del"] == Reactor("del", "c.1.2.3", 3, "delta", 4000.0, 9000.0)
    assert reactors["one"] == Reactor("one", "c.3", 1, "wye", 9e4, 8e4, None, "c.0")


def test_reads_loads(everything):
    _, feeder = everything
    q = 300 * np.tan(np.arccos(0.9))
    wanted = (
        Load("wye", "c.1.2.3.0", 3, "wye", 1, 12.47, 300.0, q, vmin_pu=0.8),
        Load("del", "q.1.2.3", 3, "delta", 5, 12.47, 90.0, 30.0),
        Load("ll", "q.1.2", 1, "delta", 2, 12.47, 40.0, 20.0),
        Load("two", "s.1.2.0", 2, "wye", 1, 0.208, 5.0, 1.0, vmax_pu=1.2, vlow_pu=0.4),
        Load("n", "h4.1.4", 1, "wye", 4, 0.277, 3.0, 1.0, cvr_watts=0.8, cvr_vars=1.7),
        Load(
            "zip",
            "f.1.2.3.0",
            3,
            "wye",
            8,
            0.48,
            60.0,
            20.0,
            zipv=(0.2, 0.3, 0.5, 0.1, 0.4, 0.5, 0.6),
        ),
        Load("r", "r.2.0", 1, "wye", 1, 7.2, 500.0, 260.0),
    )
    assert_close(feeder.loads, wanted)


def test_reads_generators_pv_and_storage(everything):
    _, feeder = everything
    generators = by_name(feeder.generators)
    assert generators["g"] == Generator("g", "f.1.2.3.0", 3, "wye", 0.48, 20.0, -5.0, 1, 0.8, 1.1, 31.0)
    assert (generators["z"].model, generators["z"].kw, generators["z"].kvar) == (2, 15.0, 2.0)
    pv = by_name(feeder.pv_systems)
    assert pv["pv"] == PVSystem(
        "pv",
        "f.1.2.3.0",
        3,
        "wye",
        0.48,
        50.0,
        48.0,
        0.7,
        40.0,
        ((0.0, 25.0, 75.0), (1.2, 1.0, 0.8)),
        ((0.1, 0.2, 0.4, 1.0), (0.86, 0.9, 0.93, 0.97)),
        kvar=11.0,
        kvar_max=30.0,
        kvar_max_abs=pv["pv"].kvar_max_abs,
        cut_in_percent=5.0,
        cut_out_percent=4.0,
    )
    assert pv["pf"].kvar == pytest.approx(18 * np.tan(np.arccos(0.95)), rel=1e-12)
    storages = by_name(feeder.storages)
    assert storages["out"] == Storage("out", "f.1.2.3.0", 3, "wye", 0.48, 40.0, 30.0, 90.0, 54.0, 25.0, 4.0)
    assert [storages[name].kw for name in ("in", "idle")] == [-12.0, -0.3]


def test_buses_have_bases_nodes_and_coordinates(tmp_path):
    (tmp_path / "xy.csv").write_text("src,1,2\nb,3.5,-4\n")
    body = LINE + "new load.x bus1=b.3.4 phases=1 kv=7.2 kw=1 kvar=0\nnew reactor.g bus1=b.4 phases=1 r=1 x=0"
    feeder = read(tmp_path, body, tail=TAIL + "buscoords xy.csv\n")
    buses = by_name(feeder.buses)
    assert buses["src"].nodes == (1, 2, 3)
    assert (buses["src"].x, buses["b"].y) == (1.0, -4.0)
    assert buses["b"].nodes == (1, 2, 3, 4)
    assert buses["b"].base_kv == pytest.approx(12.47 / 3**0.5, rel=1e-12)


def test_round_trip_keeps_tables_and_voltages(everything, tmp_path):
    path, feeder = everything
    written = tmp_path / "written.dss"
    write_opendss(feeder, written)
    again = read_opendss(written)
    assert_close(feeder, again)
    before, after = voltages(path), voltages(written, settle=False)
    assert before.keys() == after.keys()
    assert max(abs(before[node] - after[node]) for node in before) < 1e-9


@pytest.mark.parametrize(
    "body",
    [
        "new fault.f bus1=b.1 phases=1 r=5\n",
        "new line.x bus1=b bus2=c length=1 c1=900 c0=900\nopen line.x 2\n",
        "new reactor.z bus1=b bus2=c z1=[.1 .4] z0=[.2 .6]\n",
        "new capacitor.m bus1=b kv=12.47 cmatrix=[1 | -.1 1 | -.1 -.1 1]\n",
        "new transformer.o buses=[b c] kvs=[12.47 .48] kvas=[50 50]\nopen transformer.o 1 1\n",
    ],
)
def test_generic_admittance_warns_names_and_gives_the_voltages(tmp_path, body):
    name = body.split()[1]
    path = circuit(tmp_path, LINE + "new load.l bus1=b kv=12.47 kw=500 pf=.9\n", tail=body + TAIL)
    with pytest.warns(UserWarning, match=f"{name} is read as a constant admittance"):
        feeder = read_opendss(path)
    assert [a.name for a in feeder.admittances] == [name.replace(".", "_")]
    assert all(name.partition(".")[2] not in by_name(t) for t in (feeder.reactors, feeder.lines))
    write_opendss(feeder, tmp_path / "written.dss")
    before, after = voltages(path), voltages(tmp_path / "written.dss")
    assert max(abs(before[node] - after[node]) for node in before) < 1e-9


def test_a_record_that_is_off_the_engine_is_replaced(tmp_path, monkeypatch):
    from gridjax.io import opendss_elements

    read_values = opendss_elements._values

    def misread(*args):
        return dataclasses.replace(read_values(*args), c1=10.001)

    monkeypatch.setattr(opendss_elements, "_values", misread)
    with pytest.warns(UserWarning, match=r"line\.main is read as a constant admittance"):
        feeder = read(tmp_path, LINE)
    assert isinstance(feeder.admittances[0], Admittance)
    assert (feeder.lines, feeder.codes) == ((), ())


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("new isource.i bus1=b amps=3\n", r"isource\.i"),
        ("new vsource.v bus1=b bus2=b.4.5.6 basekv=12.47\n", r"vsource\.v"),
        ("new vsource.v bus1=b basekv=12.47 sequence=neg\n", r"vsource\.v"),
        ("new generator.g bus1=b kv=12.47 kw=9 model=3\n", r"generator\.g: model=3"),
        ("new load.n bus1=b.1.4 phases=1 kv=7.2 kw=9 rneut=3\n", r"load\.n: rneut"),
        ("new load.o bus1=b kv=12.47 kw=9\nopen load.o 1 2\n", r"load\.o: it has open"),
        ("new indmach012.m bus1=b kv=12.47 kw=9\n", r"indmach012\.m"),
        ("new pvsystem.p bus1=b kv=12.47 kva=9 pmpp=9 limitcurrent=yes\n", r"pvsystem\.p: Limit"),
    ],
)
def test_refused_elements_are_named(tmp_path, body, named):
    with pytest.raises(ValueError, match=named):
        read(tmp_path, LINE + body)


def test_rneut_on_a_grounded_neutral_changes_nothing(tmp_path):
    body = "new load.n bus1=b.1.0 phases=1 kv=7.2 kw=9 kvar=1 rneut=3\n"
    (load,) = read(tmp_path, LINE + body).loads
    assert (load.kw, load.bus) == (9.0, "b.1.0")


def test_disabled_elements_meters_and_other_controls_warn(tmp_path):
    body = """
new line.off bus1=b bus2=c length=1 enabled=no
new energymeter.main element=line.main
new monitor.mon element=line.main
new relay.r monitoredobj=line.main
new loadshape.day npts=2 interval=12 mult=[.5 1]
new load.shaped bus1=b kv=12.47 kw=9 kvar=1 daily=day
"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feeder = read(tmp_path, LINE + body)
    texts = [str(w.message) for w in caught if w.category is UserWarning]
    for wanted in (
        "disabled elements are left out: line.off",
        "meters are left out; they change no flow: energymeter.main, monitor.mon",
        "stays in its present state: relay.r",
        "shapes are not read: load.shaped",
    ):
        assert [wanted in text for text in texts].count(True) == 1, texts
    assert len(texts) == 4
    assert [line.name for line in feeder.lines] == ["main"]
    assert [bus.name for bus in feeder.buses] == ["src", "b"]


@pytest.mark.parametrize(
    ("settings", "kw"),
    [
        ("set loadmult=.7\n", (70.0, 50.0, 13.2 * 0.7)),
        ("", (100.0, 50.0, 13.2)),
    ],
)
def test_load_multiplier_allocation_and_fixed_loads(tmp_path, settings, kw):
    body = """
new load.a bus1=b kv=12.47 kw=100 pf=.95
new load.fixed bus1=b kv=12.47 kw=50 kvar=0 status=fixed
new load.allocated bus1=b.1 phases=1 kv=7.2 xfkva=50 allocationfactor=.3 pf=.88
"""
    feeder = read(tmp_path, LINE + body, tail=settings + TAIL)
    assert [load.kw for load in feeder.loads] == pytest.approx(kw, rel=1e-12)
    assert feeder.loads[0].kvar == pytest.approx(kw[0] * np.tan(np.arccos(0.95)), rel=1e-12)


def test_growth_is_in_the_powers(tmp_path):
    body = "new growthshape.g npts=2 year=[1 2] mult=[1.1 1.2]\n"
    body += "new load.a bus1=b kv=12.47 kw=100 kvar=10 growth=g\n"
    (load,) = read(tmp_path, LINE + body, tail="set year=3\n" + TAIL).loads
    assert (load.kw, load.kvar) == pytest.approx((132.0, 13.2), rel=1e-12)


def test_admittance_loads_become_model_2(tmp_path):
    body = "new load.a bus1=b kv=12.47 kw=3000 kvar=1000 model=1\n"
    path = circuit(tmp_path, LINE + body, tail="set loadmodel=admittance\n" + TAIL)
    with pytest.warns(UserWarning, match=r"model 2: load\.a"):
        feeder = read_opendss(path)
    assert feeder.loads[0].model == 2
    write_opendss(feeder, tmp_path / "written.dss")
    before, after = voltages(path), voltages(tmp_path / "written.dss")
    assert max(abs(before[node] - after[node]) for node in before) < 1e-9


def test_dispatched_generators_give_what_they_produce(tmp_path):
    body = """
new generator.half bus1=b kv=12.47 kw=50 kvar=4
new generator.off bus1=b kv=12.47 kw=50 kvar=4 dispmode=loadlevel dispvalue=2
"""
    feeder = read(tmp_path, LINE + body, tail="set genmult=.5\n" + TAIL)
    half, off = feeder.generators
    assert (half.kw, half.kvar) == pytest.approx((25.0, 2.0), rel=1e-12)
    assert (off.kw, off.kvar) == pytest.approx((-0.005, 0.0))  # the engine's standby, 1e-4 of kw


def test_inverter_control_leaves_its_reactive_power(tmp_path):
    body = """
new line.long bus1=b bus2=c length=5 units=km r1=.5 x1=.5 r0=1 x0=1 c1=0 c0=0
new pvsystem.pv bus1=c kv=12.47 kva=3000 pmpp=2500 irradiance=1 %cutin=1 %cutout=1
new xycurve.vv npts=4 xarray=[.9 .95 1 1.1] yarray=[1 0 0 -1]
new invcontrol.ic mode=voltvar vvc_curve1=vv derlist=[pvsystem.pv]
"""
    path = circuit(tmp_path, LINE + body)
    with pytest.warns(UserWarning, match=r"present state: invcontrol\.ic"):
        feeder = read_opendss(path)
    assert feeder.pv_systems[0].kvar < -50
    engine = dss.DSS.NewContext()
    engine.Text.Command = f'redirect "{path}"'
    engine.ActiveCircuit.Solution.Solve()
    engine.ActiveCircuit.SetActiveElement("pvsystem.pv")
    q = -sum(engine.ActiveCircuit.ActiveCktElement.Powers[1::2])
    assert feeder.pv_systems[0].kvar == pytest.approx(q, rel=1e-3)


def test_curtailed_inverter_is_read_as_a_generator(tmp_path):
    body = """
new line.long bus1=b bus2=c length=9 units=km r1=.9 x1=.5 r0=1 x0=1 c1=0 c0=0
new pvsystem.pv bus1=c kv=12.47 kva=6000 pmpp=6000 irradiance=1 %cutin=1 %cutout=1
new xycurve.vw npts=3 xarray=[1 1.01 1.1] yarray=[1 1 .2]
new invcontrol.ic mode=voltwatt voltwatt_curve=vw derlist=[pvsystem.pv]
set maxcontroliter=500
"""
    with (
        pytest.warns(UserWarning, match=r"present state: invcontrol\.ic"),
        pytest.warns(UserWarning, match=r"pvsystem\.pv is read as a Generator"),
    ):
        feeder = read(tmp_path, LINE + body)
    assert feeder.pv_systems == ()
    assert 0 < feeder.generators[0].kw < 5900


@pytest.mark.parametrize(
    ("code_unit", "line_unit", "factor"),
    [("mi", "ft", 1 / 5280), ("none", "ft", 1.0), ("km", "none", 1.0), ("kft", "m", 1e-3 / 0.3048)],
)
def test_units(tmp_path, code_unit, line_unit, factor):
    body = f"""
new linecode.c nphases=1 units={code_unit} rmatrix=[2] xmatrix=[3] cmatrix=[0]
new line.main bus1=src.1 bus2=b.1 phases=1 linecode=c length=10 units={line_unit}
"""
    feeder = read(tmp_path, body)
    from gridjax.admittance import describe, primitive

    description = describe(feeder, feeder.lines[0])
    y = primitive(description.static, description.params)[0, 0]
    assert complex(y) == pytest.approx(1 / ((2 + 3j) * 10 * factor), rel=1e-12)
    assert (feeder.lines[0].unit, feeder.codes[0].unit) == (line_unit, code_unit)
    assert feeder.admittances == ()


def test_line_that_left_its_code_gets_its_own(tmp_path):
    body = """
new linecode.c nphases=3 units=km r1=.2 x1=.4 r0=.5 x0=1.1 c1=12 c0=5
new line.main bus1=src bus2=b linecode=c length=1 units=km
new line.other bus1=b bus2=c linecode=c length=1 units=km r1=.3
edit linecode.c r1=.7
new line.late bus1=c bus2=d linecode=c length=1 units=km
"""
    feeder = read(tmp_path, body)
    lines, codes = by_name(feeder.lines), by_name(feeder.codes)
    assert lines["late"].code == "c"
    assert [codes[lines[name].code].r1 for name in ("main", "other", "late")] == [0.2, 0.3, 0.7]
    assert feeder.admittances == ()


def test_cables_are_read_as_the_engines_matrices(tmp_path):
    body = """
new cndata.cn runits=mi radunits=in gmrunits=in inslayer=.22 diains=.82 diacable=1.06 epsr=2.3
~ rac=.4105 gmrac=.2052 diam=.567 rstrand=14.8722 gmrstrand=.02496 diastrand=.0641 k=13
new linegeometry.cable nconds=3 nphases=3 units=ft
~ cond=1 cncable=cn x=-.5 h=-4
~ cond=2 cncable=cn x=0 h=-4
~ cond=3 cncable=cn x=.5 h=-4
new line.main bus1=src bus2=b geometry=cable length=1 units=mi
"""
    with pytest.warns(UserWarning, match=r"matrices at 60 Hz: line\.main"):
        feeder = read(tmp_path, body)
    assert isinstance(feeder.codes[0], LineCode)
    assert feeder.codes[0].c[0][0] > 100  # overhead: some ten
    assert feeder.admittances == ()


@pytest.mark.parametrize("pu", [0.8, 1.0, 1.18])
@pytest.mark.parametrize("terminal", ["b.1", "b.2.3", "b.1.2.3", "b.1.2.3.4"])
@pytest.mark.parametrize("model", [1, 2])
def test_inverters_in_and_out_of_their_band(tmp_path, pu, terminal, model):
    delta = terminal in ("b.2.3", "b.1.2.3")
    phases = {"b.1": 1, "b.2.3": 1, "b.1.2.3": 3, "b.1.2.3.4": 3}[terminal]
    where = f"bus1={terminal} phases={phases} conn={'delta' if delta else 'wye'} model={model}"
    where += f" kv={7.2 if terminal == 'b.1' else 12.47}"
    body = f"""
edit vsource.source pu={pu}
new reactor.n bus1=b.4 phases=1 r=1 x=0
new pvsystem.p {where} kva=90 pmpp=80 irradiance=.9 kvar=20 %cutin=1 %cutout=1
new storage.s {where} kva=90 kwrated=80 kwhrated=80 kw=50 kvar=10
"""
    feeder = read(tmp_path, LINE + body)
    (pv,), (battery,) = feeder.pv_systems, feeder.storages
    assert (pv.irradiance, pv.kvar, battery.kw, battery.kvar) == (0.9, 20.0, 50.0, 10.0)


def test_uneven_capacitor_steps_follow_the_engine(tmp_path):
    body = "new capacitor.c bus1=b kv=12.47 numsteps=2 kvar=[150 90]\n"
    path = circuit(tmp_path, LINE + body)
    with pytest.warns(UserWarning, match=r"capacitor\.c has steps of 150 kvar each"):
        feeder = read_opendss(path)
    assert feeder.capacitors[0].kvar == pytest.approx((150.0, 150.0), rel=1e-12)
    uneven = dataclasses.replace(feeder.capacitors[0], kvar=(150.0, 90.0))
    write_opendss(feeder.replace(capacitors=(uneven,)), tmp_path / "written.dss")
    again = read_opendss(tmp_path / "written.dss")
    assert again.capacitors[0].kvar == pytest.approx((150.0, 90.0), rel=1e-12)


def test_open_switch(tmp_path):
    body = "new line.sw bus1=b bus2=c switch=y r1=.2 x1=0 r0=.2 x0=0 c1=0 c0=0 length=1\n"
    body += "new load.far bus1=c kv=12.47 kw=9 kvar=1\n"
    path = circuit(tmp_path, LINE + body, tail=TAIL.replace("solve", "open line.sw 1\nsolve"))
    feeder = read_opendss(path)
    assert feeder.switches == (Switch("sw", "b.1.2.3", "c.1.2.3", False, 0.2, 0.0, 400.0),)
    write_opendss(feeder, tmp_path / "written.dss")
    assert_close(read_opendss(tmp_path / "written.dss"), feeder)


def test_missing_script_names_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_opendss(tmp_path / "nowhere.dss")


def test_missing_part_names_the_script_and_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.dss.*small\.dss.*line: 4"):
        read(tmp_path, "redirect gone.dss\n")


def test_broken_script_names_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"lod.*small\.dss.*line: 5"):
        read(tmp_path, LINE + "new lod.x bus1=b\n")


def test_script_without_circuit(tmp_path):
    with pytest.raises(ValueError, match="makes no circuit"):
        read(tmp_path, "", head="clear\n", tail="")


def test_voltage_bases(tmp_path):
    with pytest.raises(ValueError, match=r"no voltage base at bus src, b.*CalcVoltageBases"):
        read(tmp_path, LINE, tail="solve\n")
    feeder = read(tmp_path, LINE, tail="set voltagebases=[12.47]\nsolve\n")
    assert feeder.buses[1].base_kv == pytest.approx(12.47 / 3**0.5, rel=1e-12)


def test_other_frequency_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"50 Hz a circuit of 60 Hz.*DefaultBaseFrequency=50"):
        read(tmp_path, LINE, tail="set frequency=50\n" + TAIL)


def test_unsettled_mode_warns_and_reads_the_snapshot(tmp_path):
    body = LINE + "new loadshape.day npts=2 interval=12 mult=[.5 .6]\n"
    body += "new load.a bus1=b kv=12.47 kw=100 kvar=10 daily=day\n"
    with (
        pytest.warns(UserWarning, match="asks for the solution mode"),
        pytest.warns(UserWarning, match=r"shapes are not read: load\.a"),
    ):
        feeder = read(tmp_path, body, tail=TAIL.replace("solve", "set mode=daily number=2\nsolve"))
    assert feeder.loads[0].kw == 100.0


def test_a_warning_names_ten_elements_at_most(tmp_path):
    body = LINE + "new loadshape.day npts=2 interval=12 mult=[.5 .6]\n"
    body += "".join(f"new load.l{k} bus1=b kv=12.47 kw=100 kvar=10 daily=day\n" for k in range(13))
    with pytest.warns(UserWarning, match=r"not read: load\.l0, .*, load\.l9 and 3 more$"):
        read(tmp_path, body)


def test_process_is_left_as_it_was(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    engine = dss.DSS
    engine.Text.Command = "clear"
    engine.Text.Command = "new circuit.mine"
    engine.AllowChangeDir = engine.AllowEditor = True
    settings = (engine.AllowChangeDir, engine.AllowEditor, engine.AllowForms)
    start = os.listdir(engine.DataPath)
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "part.dss").write_text(LINE)
    read(
        folder,
        "redirect part.dss\n",
        tail=TAIL + "show voltages\nexport voltages\nplot profile\nvisualize voltages line.main\n",
    )
    with pytest.raises(ValueError):
        read(folder, "nonsense here\n", name="broken.dss")
    assert os.getcwd() == str(home)
    assert engine.ActiveCircuit.Name == "mine"
    assert (engine.AllowChangeDir, engine.AllowEditor, engine.AllowForms) == settings
    assert sorted(p.name for p in folder.iterdir()) == ["broken.dss", "part.dss", "small.dss"]
    assert list(home.iterdir()) == []
    assert os.listdir(engine.DataPath) == start


def test_missing_engine_names_the_extra(tmp_path, monkeypatch):
    path = circuit(tmp_path, LINE)
    monkeypatch.setitem(sys.modules, "dss", None)
    with pytest.raises(ImportError, match=r"pip install gridjax\[opendss\]"):
        read_opendss(path)


@pytest.mark.parametrize("name", ["a b", "x=1", "a.b", "ä", "a!b", "q//r", ""])
def test_names_that_opendss_cannot_hold_are_refused(tmp_path, name):
    feeder = read(tmp_path, LINE)
    line = dataclasses.replace(feeder.lines[0], name=name)
    with pytest.raises(ValueError, match="cannot hold the name"):
        write_opendss(feeder.replace(lines=(line,)), tmp_path / "w.dss")


def test_lines_and_switches_share_names_in_opendss(tmp_path):
    feeder = read(tmp_path, LINE)
    switch = Switch("MAIN", "b.1.2.3", "c.1.2.3")
    with pytest.raises(ValueError, match="'MAIN': OpenDSS cannot tell it from lines: 'main'"):
        write_opendss(feeder.replace(switches=(switch,)), tmp_path / "w.dss")


def test_what_opendss_cannot_hold_is_refused(tmp_path):
    feeder = read(tmp_path, LINE)
    switch = Switch("s", "b.1.2.3", "c.1.2.3", r_ohm=0.0)
    with pytest.raises(ValueError, match="'s' has no impedance"):
        write_opendss(feeder.replace(switches=(switch,)), tmp_path / "w.dss")
    zero = ((0.0, 0.0), (0.0, 0.0))
    skew = Admittance("k", ("b.1.2",), ((1.0, 2.0), (0.0, 1.0)), zero)
    with pytest.raises(ValueError, match="'k' is not symmetric"):
        write_opendss(feeder.replace(admittances=(skew,)), tmp_path / "w.dss")


def test_several_sources_round_trip(tmp_path):
    body = """
edit vsource.source enabled=no
new vsource.one bus1=src basekv=12.47 pu=1.01 r1=.1 x1=.5 r0=.2 x0=.9
new vsource.two bus1=b.2 phases=1 basekv=7.2 angle=-119 r1=1 x1=5 r0=4 x0=8
new vsource.mva bus1=b.3 phases=1 basekv=7.2 angle=121 mvasc3=30 mvasc1=20
new vsource.neg bus1=b basekv=12.47 z1=[1 9] z0=[2 20] z2=[3 30]
"""
    path = circuit(tmp_path, LINE + body)
    with pytest.warns(UserWarning, match=r"disabled elements are left out: vsource\.source"):
        feeder = read_opendss(path)
    sources = by_name(feeder.sources)
    assert_close(sources["one"], Source("one", "src.1.2.3", 12.47, 1.01, 0.0, 0.1, 0.5, 0.2, 0.9))
    assert_close(sources["two"], Source("two", "b.2", 7.2, 1.0, -119.0, 1.0, 5.0, 1.0, 5.0))
    assert (sources["neg"].r2_ohm, sources["neg"].x2_ohm) == (3.0, 30.0)
    write_opendss(feeder, tmp_path / "written.dss")
    with pytest.warns(UserWarning, match=r"disabled elements are left out: vsource\.source"):
        assert_close(read_opendss(tmp_path / "written.dss"), feeder)
    before, after = voltages(path), voltages(tmp_path / "written.dss")
    assert max(abs(before[node] - after[node]) for node in before) < 1e-9


CONTROLLED = """
new capacitor.c bus1=b kv=12.47 kvar=100
new transformer.t buses=[b c] kvs=[12.47 12.47] kvas=[900 900] xhl=1
"""


@pytest.mark.parametrize(
    ("kind", "on", "off"),
    [("voltage", 110, 131), ("current", 300, 200), ("kvar", 90, -90), ("pf", 0.95, 0.99), ("time", 8, 20)],
)
def test_capacitor_controls_of_each_kind_round_trip(tmp_path, kind, on, off):
    body = f"new capcontrol.k capacitor=c element=line.main terminal=2 type={kind} ptphase=2 ctphase=3"
    body += f" onsetting={on} offsetting={off} voltoverride=yes vmin=7000 vmax=7700 ptratio=1\n"
    feeder = read(tmp_path, LINE + CONTROLLED + body)
    (control,) = feeder.capacitor_controls
    assert (control.kind, control.on, control.off) == (kind, on, off)
    assert feeder.capacitors[0].closed == (kind in ("kvar", "pf"),)  # the others open it
    assert (control.element, control.terminal, control.ct_phase, control.pt_phase) == (
        *("line.main", 1 if kind == "time" else 2),  # a clock watches no terminal
        *(3, 2),
    )
    assert (control.voltage_override, control.vmin, control.vmax) == (True, 7000.0, 7700.0)
    write_opendss(feeder, tmp_path / "written.dss")
    assert_close(read_opendss(tmp_path / "written.dss"), feeder)


def test_regulator_round_trips_with_all_of_its_data(tmp_path):
    body = "new regcontrol.k transformer=t winding=2 vreg=121 band=3 ptratio=60 bus=b.2 ptphase=2 reversible=yes"
    body += " revvreg=119 revband=4 revr=1 revx=2 revdelay=50 revthreshold=90 revneutral=yes inversetime=yes"
    body += " vlimit=126\n"
    feeder = read(tmp_path, LINE + CONTROLLED + body)
    (regulator,) = feeder.regulators
    assert (regulator.monitored_bus, regulator.pt_phase, regulator.voltage_limit) == ("b.2", 2, 126.0)
    assert (regulator.reverse_vreg, regulator.reverse_band, regulator.reverse_x) == (119.0, 4.0, 2.0)
    assert (regulator.reverse_delay_s, regulator.reverse_threshold_kw) == (50.0, 90.0)
    assert regulator.inverse_time and regulator.reversible and regulator.reverse_neutral
    write_opendss(feeder, tmp_path / "written.dss")
    assert_close(read_opendss(tmp_path / "written.dss"), feeder)


@pytest.mark.parametrize(
    "body",
    [
        "new regcontrol.k transformer=t winding=2 vreg=120 band=2 ptratio=60 ptphase=max\n",
        "new regcontrol.k transformer=t winding=2 vreg=120 band=2 ptratio=60 ldc_z=3\n",
        "new capcontrol.k capacitor=c element=line.main type=voltage ptphase=avg onsetting=110 offsetting=131\n",
    ],
)
def test_controls_without_an_equal_are_left_out_by_name(tmp_path, body):
    name = body.split()[1]
    with pytest.warns(UserWarning, match=f"{name} is left out, its .* stays"):
        feeder = read(tmp_path, LINE + CONTROLLED + body)
    assert feeder.regulators == feeder.capacitor_controls == ()


def test_engine_that_does_not_converge_warns(tmp_path):
    body = "new load.huge bus1=b kv=12.47 kw=9e6 pf=.9 vminpu=1e-9 vlowpu=1e-10\n"
    with pytest.warns(UserWarning, match="did not converge"):
        read(tmp_path, LINE + body, tail=TAIL.replace("solve", ""))


def test_controls_that_do_not_settle_within_the_scripts_limit_name_the_cure(tmp_path):
    tail = TAIL.replace("solve", "set maxcontroliter=1\nsolve")
    with pytest.raises(ValueError, match=r"line: \d+\] Raise 'Set MaxControlIter'"):
        read(tmp_path, ALL, tail=tail)


def test_code_names_may_hold_dots(tmp_path):
    body = "new linecode.2c_.007 nphases=3 units=km r1=.2 x1=.4 r0=.5 x0=1.1 c1=12 c0=5\n"
    body += "new line.main bus1=src bus2=b linecode=2c_.007 length=1 units=km\n"
    feeder = read(tmp_path, body)
    write_opendss(feeder, tmp_path / "written.dss")
    assert_close(read_opendss(tmp_path / "written.dss"), feeder)
    assert feeder.lines[0].code == "2c_.007"
