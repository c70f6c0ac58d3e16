"""Series from files: CSV, OpenDSS's load shapes beside the engine's own run, SimBench's format."""

import dataclasses
import warnings

import numpy as np
import pytest
from dss import DSS
from feeders_for_tests import two_bus_feeder

import gridjax
from gridjax import profiles
from gridjax.feeder import Generator, PVSystem, Storage
from gridjax.io.loadshapes import read_load_shapes
from gridjax.io.profiles import read_csv_profiles, resampled, shapes_of
from gridjax.io.simbench import read_simbench_profiles, simbench_folder


def feeder():
    f = two_bus_feeder()
    other = dataclasses.replace(f.loads[0], name="S2", kw=50.0, kvar=10.0)
    return f.replace(
        loads=(*f.loads, other),
        generators=(Generator("g", "b.1.2.3.0", 3, "wye", 4.16, 80.0, 20.0),),
        pv_systems=(PVSystem("roof", "b.1.2.3.0", 3, "wye", 4.16, kva=60.0, pmpp_kw=50.0, kvar=5.0),),
        storages=(Storage("box", "b.1.2.3.0", 3, "wye", 4.16, 50.0, 40.0, 100.0, 50.0),),
    )


def point_at(shapes, f, t):
    return profiles.at(gridjax.compile(f).nominal, shapes, t)


def written(tmp_path, text, name="series.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


# --- CSV. ---


def test_a_csv_of_every_kind_of_column(tmp_path):
    f = feeder()
    path = written(
        tmp_path,
        "# measured\nhour [min];s1 [%];S2 [W];load.s2 [kvar];generator.g;pvsystem.roof [kW];storage.box [MW]\n"
        "15;50;25000;7;0.5;30;-0.02\n30;80;20000;-3;1;0;0.01\n\n",
    )
    table = read_csv_profiles(path, f)
    np.testing.assert_allclose(table.hour, [0.25, 0.5])
    shapes = shapes_of(f, table)
    point = point_at(shapes, f, 0)
    np.testing.assert_allclose(point.load_kw, [150.0, 25.0])
    np.testing.assert_allclose(point.load_kvar, [50.0, 7.0])
    np.testing.assert_allclose(point.generation_kw, [40.0, 30.0, -20.0])
    np.testing.assert_allclose(point.generation_kvar, [10.0, 5.0, 0.0])


def test_one_multiplier_for_all_loads_but_those_with_a_column(tmp_path):
    f = feeder()
    table = read_csv_profiles(written(tmp_path, "all,s2 [kW]\n0.5,10\n0.6,20\n0.7,30\n"), f, step_hours=0.5)
    np.testing.assert_allclose(table.hour, [0.5, 1.0, 1.5])
    point = point_at(shapes_of(f, table), f, 1)
    np.testing.assert_allclose(point.load_kw, [180.0, 20.0])
    np.testing.assert_allclose(point.load_kvar, [60.0, 4.0])
    np.testing.assert_allclose(point.generation_kw, gridjax.compile(f).nominal.generation_kw)
    longer = resampled(dataclasses.replace(table, p=table.p[:2], q=table.q[:2], hour=table.hour[:2]), 1.0)
    np.testing.assert_allclose(longer.p, [[0.55, 15.0]])
    assert longer.hour == [1.0]


def test_reactive_power_alone_and_beside_factors(tmp_path):
    f = feeder()
    table = read_csv_profiles(written(tmp_path, "hour,s1 [kvar],s2,s2 [kvar]\n1,33,0.5,4\n2,44,1,5\n"), f)
    point = point_at(shapes_of(f, table), f, 0)
    np.testing.assert_allclose(point.load_kw, [300.0, 25.0])
    np.testing.assert_allclose(point.load_kvar, [33.0, 4.0])
    table = read_csv_profiles(
        written(tmp_path, "hour,pvsystem.roof [kvar],pvsystem.roof,storage.box\n1,9,0.5,0.25\n"), f
    )
    point, nominal = point_at(shapes_of(f, table), f, 0), gridjax.compile(f).nominal
    np.testing.assert_allclose(point.generation_kw, np.array([1.0, 0.5, 0.25]) * nominal.generation_kw)
    np.testing.assert_allclose(point.generation_kvar, [20.0, 9.0, nominal.generation_kvar[2]])
    table = read_csv_profiles(written(tmp_path, "hour,pvsystem.roof [kvar]\n1,9\n"), f)
    point = point_at(shapes_of(f, table), f, 0)
    np.testing.assert_allclose((point.generation_kw[1], point.generation_kvar[1]), (50.0, 9.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("hour,s1\n", "no line of numbers"),
        ("hour,s1\n1,0.5\n2,\n", r"series.csv:3: column 2 holds 'nothing'.*fill the gap"),
        ("hour,s1\n1,nan\n", r":2: column 2 holds 'nan'"),
        ("hour;s1\n1;0,5\n", "decimal point"),
        ("hour,s1\n1,0.5,3\n", r":2: 3 values where the header names 2"),
        ("hour,nobody\n1,2\n", "names no element of feeder"),
        ("hour,s1 [horse]\n1,2\n", "unknown unit"),
        ("hour [d],s1\n1,2\n", "give h, min or s"),
        ("hour,s1,S1\n1,2,3\n", "load.s1 has two columns"),
        ("hour,all [kW]\n1,2\n", "only have factors"),
        ("hour,s1\n1,1\n2,1\n4,1\n", "not in equal steps .row 3"),
        ("s1\n1\n", "give step_hours"),
    ],
)
def test_refused_csv(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_csv_profiles(written(tmp_path, text), feeder())


def test_refused_files_and_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_csv_profiles(tmp_path / "nowhere.csv", feeder())
    binary = tmp_path / "series.csv"
    binary.write_bytes(b"hour,s1\n1,\xff\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_csv_profiles(binary, feeder())
    table = read_csv_profiles(written(tmp_path, "hour,s1\n1,1\n"), feeder())
    with pytest.raises(ValueError, match=r"no load\.s9"):
        shapes_of(feeder(), table, {"load.s9": "load.s1"})
    with pytest.raises(ValueError, match="no column home"):
        shapes_of(feeder(), table, {"load.s1": "home"})


# --- OpenDSS. ---

SCRIPT = """
clear
new circuit.c basekv=12.47 bus1=head mvasc3=1e9 mvasc1=1e9
new loadshape.p npts=4 interval=1 mult=[.1 .2 .3 .4]
new loadshape.pq npts=4 interval=1 mult=[.1 .2 .3 .4] qmult=[.5 .6 .7 .8]
new loadshape.act npts=4 interval=1 mult=[11 12 13 14] useactual=yes
new loadshape.actq npts=4 interval=1 mult=[11 12 13 14] qmult=[1 2 3 4] useactual=yes
new loadshape.var npts=3 interval=0 hour=[0 2 4] mult=[.1 .5 .9]
new loadshape.fine npts=8 minterval=30 mult=[1 2 3 4 5 6 7 8]
new loadshape.coarse npts=2 interval=2 mult=[.1 .2]
new loadshape.sun npts=6 interval=1 mult=[.1 .5 .6 .9 .4 .1]
new loadshape.wave npts=4 interval=1 mult=[.5 0 -.3 .2]
new tshape.t npts=4 interval=1 temp=[0 25 50 75]
new xycurve.pt npts=4 xarray=[0 25 75 100] yarray=[1.2 1.0 .8 .6]
new xycurve.eff npts=2 xarray=[.1 1] yarray=[.9 .97]
new load.none bus1=head kv=12.47 kw=100 kvar=50
new load.p bus1=head kv=12.47 kw=100 kvar=50 daily=p
new load.pq bus1=head kv=12.47 kw=100 kvar=50 daily=pq duty=fine
new load.act bus1=head kv=12.47 kw=100 kvar=50 daily=act
new load.actq bus1=head kv=12.47 kw=100 kvar=50 daily=actq
new load.var bus1=head kv=12.47 kw=100 kvar=50 daily=var
new load.fine bus1=head kv=12.47 kw=100 kvar=50 daily=fine
new load.coarse bus1=head kv=12.47 kw=100 kvar=50 daily=coarse
new load.fixed bus1=head kv=12.47 kw=100 kvar=50 daily=p status=fixed
new load.exempt bus1=head kv=12.47 kw=100 kvar=50 daily=p status=exempt
new load.yr bus1=head kv=12.47 kw=100 kvar=50 yearly=coarse
new generator.g bus1=head kv=12.47 kw=100 kvar=50 daily=pq
new generator.y bus1=head kv=12.47 kw=100 kvar=50 yearly=p
new pvsystem.a bus1=head kv=12.47 kva=100 pmpp=90 irradiance=0.8 daily=sun kvar=10 %cutin=45 %cutout=20
new pvsystem.t bus1=head kv=12.47 kva=100 pmpp=90 daily=sun tdaily=t p-tcurve=pt effcurve=eff %cutin=0 %cutout=0
new pvsystem.ty bus1=head kv=12.47 kva=100 pmpp=90 yearly=p tyearly=t p-tcurve=pt %cutin=0 %cutout=0
new storage.s bus1=head kv=12.47 kva=100 kwrated=90 kwhrated=1e5 %stored=50 daily=wave dispmode=follow
set voltagebases=[12.47]
calcvoltagebases
set loadmult=0.8
"""


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    path = tmp_path_factory.mktemp("dss") / "circuit.dss"
    path.write_text(SCRIPT)
    return path, read_quietly(path)


def read_quietly(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes are not read
        return gridjax.read_opendss(path)


def engine_run(path, f, mode, minutes, steps):
    """kW and kvar of every load (consumed) and generation entry (produced) in the engine's own run."""
    names = [f"load.{r.name}" for r in f.loads] + [f"generator.{r.name}" for r in f.generators]
    names += [f"pvsystem.{r.name}" for r in f.pv_systems] + [f"storage.{r.name}" for r in f.storages]
    commands = (f'redirect "{path}"', f"set mode={mode} stepsize={minutes}m number=1 hour=0", "set tolerance=1e-12")
    for command in commands:
        DSS.Text.Command = command
    circuit, rows = DSS.ActiveCircuit, []
    for _ in range(steps):
        circuit.Solution.Solve()
        row = []
        for name in names:
            assert circuit.SetActiveElement(name) >= 0
            row.append(circuit.ActiveCktElement.TotalPowers[:2])
        rows.append(row)
    power = np.array(rows)
    power[:, len(f.loads) :] *= -1
    return power[..., 0], power[..., 1]


@pytest.mark.parametrize(
    ("mode", "minutes", "steps"), [("daily", 60, 9), ("daily", 20, 14), ("yearly", 60, 6), ("duty", 30, 10)]
)
def test_load_shapes_are_the_engines(circuit, mode, minutes, steps):
    path, f = circuit
    if mode == "yearly":
        path = path.with_name("yearly.dss")
        path.write_text(SCRIPT.replace("set loadmult=0.8", ""))
        f = read_quietly(path)
    table = read_load_shapes(path, f, mode=mode, step_hours=minutes / 60, steps=steps)
    series = profiles.expand(gridjax.compile(f).nominal, shapes_of(f, table))
    kw, kvar = engine_run(path, f, mode, minutes, steps)
    ours_kw = np.concatenate([series.load_kw, series.generation_kw], axis=1)
    ours_kvar = np.concatenate([series.load_kvar, series.generation_kvar], axis=1)
    np.testing.assert_allclose(ours_kw, kw, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(ours_kvar, kvar, rtol=1e-6, atol=1e-5)


def test_load_shapes_refuse_and_warn(circuit, tmp_path):
    path, f = circuit
    with pytest.raises(ValueError, match="mode 'weekly'"):
        read_load_shapes(path, f, mode="weekly")
    with pytest.raises(FileNotFoundError):
        read_load_shapes(tmp_path / "no.dss", f)
    with pytest.raises(ValueError, match=r"load\.exempt.*loadmult=1"):
        read_load_shapes(path, f, mode="yearly")
    fewer = f.replace(loads=f.loads[:1])
    with pytest.warns(UserWarning) as found:
        read_load_shapes(path, fewer)
    assert any("load.pq follows the shape 'pq', but is not in the feeder" in str(w.message) for w in found)
    other = tmp_path / "other.dss"
    other.write_text(SCRIPT.replace("dispmode=follow", "dispmode=default"))
    with pytest.warns(UserWarning, match="dispmode=default"):
        table = read_load_shapes(other, f)
    assert "storage.s" not in table.who
    other.write_text(SCRIPT.replace("daily=sun kvar=10", "daily=sun dutystart=3"))
    with pytest.raises(ValueError, match="DutyStart"):
        read_load_shapes(other, f, mode="duty")


# --- SimBench. ---

LOADS = """time;H0-A_qload;H0-A_pload;G1_qload;G1_pload
27.03.2016 01:30;0.1;0.5;0.3;0.9
27.03.2016 01:45;0.2;0.6;0.3;0.8
27.03.2016 03:00;-0.1;0.7;0.3;0.7
"""
RES = """time;PV1;WP2
27.03.2016 01:30;0;0.98
27.03.2016 01:45;0.25;0.97
27.03.2016 03:00;0.5;0.96
"""


@pytest.fixture
def simbench(tmp_path):
    """Files of SimBench's format, with invented numbers."""
    written(tmp_path, LOADS, "LoadProfile.csv")
    written(tmp_path, RES, "RESProfile.csv")
    written(tmp_path, "id;node;profile;pLoad\nLV Load 1;n;H0-A;0.002\n", "Load.csv")
    written(tmp_path, "id;node;type;profile\nLV SGen 1;n;PV;PV1\n", "RES.csv")
    return tmp_path


def test_simbench(simbench):
    f = feeder()
    table = read_simbench_profiles(simbench)
    assert table.names == ("load.H0-A", "load.G1", "res.PV1", "res.WP2")
    assert table.who == {"load.lv load 1": "load.H0-A", "res.lv sgen 1": "res.PV1"}
    np.testing.assert_allclose(table.hour, [0.0, 0.25, 0.5])  # on through the change to summer time
    shapes = shapes_of(f, table, {"load.s1": "load.H0-A", "pvsystem.roof": "res.PV1"})
    assert shapes.p.shape == (3, 2)
    point = point_at(shapes, f, 2)
    np.testing.assert_allclose(point.load_kw, [210.0, 50.0])
    np.testing.assert_allclose(point.load_kvar, [-10.0, 10.0])
    np.testing.assert_allclose(point.generation_kw[1], 25.0)
    np.testing.assert_allclose(point.generation_kvar[1], 5.0)
    few = read_simbench_profiles(simbench, wanted=["res.WP2", "load.G1"])
    assert few.names == ("load.G1", "res.WP2")
    np.testing.assert_allclose(few.p[:, 1], [0.98, 0.97, 0.96])


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("LoadProfile.csv", LOADS.replace("0.6", "NULL"), r"LoadProfile.csv:3: column 3 holds 'NULL'"),
        ("LoadProfile.csv", LOADS.replace("G1_qload", "G2_qload"), "load.G1 has a column _pload but none _qload"),
        ("RESProfile.csv", RES.replace(";", ","), "with ; between"),
        ("RESProfile.csv", RES.replace("27.03.2016 01:45", "2016-03-27T01:45"), "31.12.2016 23:45"),
        ("RESProfile.csv", RES.rsplit("\n", 2)[0] + "\n", "different steps"),
        ("Load.csv", "id;node\n1;2\n", "'id' and 'profile'"),
    ],
)
def test_refused_simbench(simbench, file, text, words):
    written(simbench, text, file)
    with pytest.raises(ValueError, match=words):
        read_simbench_profiles(simbench)


def test_simbench_that_is_not_there(tmp_path, simbench):
    with pytest.raises(ValueError, match=r"no profile load\.H9"):
        read_simbench_profiles(simbench, wanted=["load.H9"])
    with pytest.raises(FileNotFoundError, match="holds no LoadProfile"):
        read_simbench_profiles(tmp_path / "elsewhere")
    with pytest.raises(ImportError, match="pip install simbench"):
        simbench_folder()
