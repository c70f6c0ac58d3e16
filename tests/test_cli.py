"""Every command in-process: what it shows and writes, its exit codes, and bad input."""

import csv
import dataclasses
import functools
import gzip
import itertools
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from feeders_for_tests import two_bus_feeder

import gridjax
from gridjax import commands, feeders
from gridjax.__main__ import main

compile_once = functools.cache(lambda feeder, dtype: gridjax.compile(feeder, dtype=dtype))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(commands, "compile", lambda feeder, dtype: compile_once(feeder, dtype))


@pytest.fixture
def two_bus(tmp_path):
    path = tmp_path / "two-bus.json"
    gridjax.write_json(two_bus_feeder(), path)
    return path


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def refuse(text):
    raise ValueError(f"{text} is not JSON")


def strict_json(text):
    return json.loads(text, parse_constant=refuse)


# solve


def test_solve_shows_and_writes_the_flow(capsys, tmp_path, two_bus):
    files = [tmp_path / name for name in ("r.json", "r.csv", "r.png")]
    code, out, err = run(capsys, "solve", two_bus, "--json", files[0], "--csv", files[1], "--plot", files[2])
    assert code == 0 and err == ""
    feeder = two_bus_feeder()
    grid = compile_once(feeder, np.dtype("float64"))
    v = np.asarray(gridjax.solve(grid, grid.nominal).v)
    numbers = strict_json(files[0].read_text())
    assert numbers["gridjax_version"] == gridjax.__version__ and numbers["converged"] is True
    np.testing.assert_allclose([row["voltage_pu"] for row in numbers["voltages"]], abs(v), rtol=1e-12)
    assert numbers["min_voltage_pu"] == pytest.approx(abs(v).min()) and numbers["min_voltage_node"].startswith("b.")
    loss = gridjax.losses(grid, grid.nominal, gridjax.solve(grid, grid.nominal))
    assert numbers["losses_kw"] == pytest.approx(float(loss.real))
    assert numbers["source_kw"] == pytest.approx(300.0 + float(loss.real), abs=1e-4)
    assert f"{abs(v).min():.5f} pu" in out and "two-bus" in out
    with files[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == list(feeder.node_names)
    np.testing.assert_allclose([float(row["angle_deg"]) for row in rows], np.degrees(np.angle(v)), atol=1e-9)
    assert files[2].read_bytes()[:4] == b"\x89PNG"


def test_solve_writes_nothing_but_json_to_stdout(capsys, two_bus):
    code, out, err = run(capsys, "solve", two_bus, "--json", "-", "--scale", "0.5", "--method", "newton")
    numbers = strict_json(out)
    assert code == 0 and numbers["load_scale"] == 0.5 and numbers["method"] == "newton" and "converged" in err
    assert numbers["source_kw"] == pytest.approx(150.0, rel=0.02)


def test_an_unconverged_solve_is_no_result(capsys, tmp_path, two_bus):
    files = [tmp_path / name for name in ("r.json", "r.csv", "r.html")]
    argv = ("solve", two_bus, "--scale", "500", "--json", files[0], "--csv", files[1], "--plot", files[2])
    code, out, err = run(capsys, *argv)
    assert code == 1 and "NO" in out and "did not converge" in err and "--method newton" in err
    numbers = strict_json(files[0].read_text())
    assert numbers["converged"] is False and numbers["voltages"] == []
    assert all(numbers[key] is None for key in ("min_voltage_pu", "source_kw", "losses_kw", "nodes_outside_range_a"))
    assert not files[1].exists()
    assert "NOT CONVERGED" in files[2].read_text()


def test_float32_is_passed_on(capsys, two_bus):
    code, out, _ = run(capsys, "solve", two_bus, "--float32", "--json", "-")
    assert code == 0 and strict_json(out)["dtype"] == "float32"


def test_fatal_problems_stop_a_solve(capsys, tmp_path):
    feeder = two_bus_feeder()
    path = tmp_path / "bad.json"
    gridjax.write_json(feeder.replace(lines=(dataclasses.replace(feeder.lines[0], code="none"),)), path)
    code, _, err = run(capsys, "solve", path)
    assert code == 1 and "unknown code" in err and "gridjax validate" in err and err.count("\n") == 1


# batch


def test_batch_counts_and_writes_every_scenario(capsys, tmp_path, two_bus):
    table, picture = tmp_path / "b.csv", tmp_path / "b.svg"
    argv = (
        "batch",
        two_bus,
        "--scenarios",
        "25",
        "--batch-size",
        "10",
        "--seed",
        "1",
        "--csv",
        table,
        "--plot",
        picture,
    )
    code, out, err = run(capsys, *argv)
    assert code == 0 and "25 of 25" in out and "scenarios/s" in out and err == ""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["scenario"]) for row in rows] == list(range(25))
    lowest = [float(row["min_voltage_pu"]) for row in rows]
    assert f"{np.median(lowest):.5f}" in out and all(row["converged"] == "True" for row in rows)
    assert picture.read_text().lstrip().startswith("<?xml")
    run(capsys, *argv[:2], "--scenarios", "25", "--batch-size", "10", "--seed", "2", "--csv", table)
    with table.open() as file:
        assert float(next(csv.DictReader(file))["min_voltage_pu"]) != lowest[0]


# feeders, validate, convert


def test_feeders_lists_every_shipped_one(capsys):
    code, out, _ = run(capsys, "feeders")
    rows = {
        line.split()[0]: line.split() for line in out.splitlines() if line.split() and line.split()[0] in feeders.NAMES
    }
    assert code == 0 and set(rows) == set(feeders.NAMES)
    feeder = feeders.ieee123()
    nodes = sum(len(bus.nodes) for bus in feeder.buses)
    assert rows["ieee123"][1:4] == [str(len(feeder.buses)), str(nodes), str(len(feeder.lines))]


def test_feeders_as_a_program():
    done = subprocess.run([sys.executable, "-m", "gridjax", "feeders"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "ieee123" in done.stdout and done.stderr == "" and "\x1b" not in done.stdout


def test_validate_tells_fatal_from_doubtful(capsys, tmp_path, two_bus):
    assert run(capsys, "validate", two_bus)[:2] == (0, "two-bus: no problems found\n")
    feeder = two_bus_feeder()
    doubtful = feeder.replace(loads=(dataclasses.replace(feeder.loads[0], kv=12.47),))
    fatal = feeder.replace(lines=(dataclasses.replace(feeder.lines[0], bus2="\x1b[31mno.1.2.3"),))
    for bad, code, word in ((doubtful, 0, "doubt"), (fatal, 1, "fatal")):
        gridjax.write_json(bad, tmp_path / "bad.json.gz")
        got, out, _ = run(capsys, "validate", tmp_path / "bad.json.gz")
        assert got == code and word in out and "\x1b" not in out


def test_convert_there_and_back(capsys, tmp_path, two_bus):
    steps = [two_bus, tmp_path / "a.json.gz", tmp_path / "b.json", tmp_path / "c.dss"]
    for source, target in itertools.pairwise(steps):
        assert run(capsys, "convert", source, target)[0] == 0
    assert gridjax.read_json(steps[2]) == two_bus_feeder()
    assert "New Line.l1" in steps[3].read_text()


def test_warnings_are_short_lines(capsys, monkeypatch, two_bus):
    def noisy(path):
        warnings.warn(f"{'long ' * 100}\x1b[2J\nend", UserWarning, stacklevel=2)
        return two_bus_feeder()

    monkeypatch.setattr(commands, "read_json", noisy)
    _, _, err = run(capsys, "validate", two_bus)
    assert err.startswith("warning: long") and err.count("\n") == 1 and len(err) < 220 and "\x1b" not in err
    assert len(run(capsys, "validate", two_bus, "--debug")[2]) > 500


# Bad usage and bad input


def test_a_missing_feeder_suggests_a_close_name(capsys):
    code, out, err = run(capsys, "solve", "iee123")
    assert code == 2 and out == "" and "did you mean ieee123" in err and err.count("\n") == 1


def bad_files(folder):
    whole = folder / "whole.json"
    gridjax.write_json(two_bus_feeder(), whole)
    text = whole.read_text()
    return {
        "missing.json": (None, "No such file"),
        "missing.dss": (None, "no OpenDSS script"),
        "cut.json": (text[: len(text) // 2].encode(), "damaged or cut off"),
        "cut.json.gz": (gzip.compress(text.encode())[:100], "not whole gzip data"),
        "nan.json": (text.replace("300.0", "NaN").encode(), "NaN"),
        "empty.json": (b"", "not JSON"),
        "kind.xml": (b"<x/>", "suffix must be"),
        "deep.json": (b"[" * 100_000, "nested deeper"),
    }


@pytest.mark.parametrize(
    "name",
    ["missing.json", "missing.dss", "cut.json", "cut.json.gz", "nan.json", "empty.json", "kind.xml", "deep.json"],
)
def test_bad_files_give_one_line(capsys, tmp_path, name):
    content, words = bad_files(tmp_path)[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for command in (["solve"], ["validate"], ["batch", "--scenarios", "2"]):
        code, out, err = run(capsys, *command, tmp_path / name)
        assert code == 2 and out == "" and words in err and err.count("\n") == 1 and err.startswith("gridjax: error: ")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["solve"],
        ["solve", "ieee13", "--scale", "nan"],
        ["solve", "ieee13", "--scale", "x"],
        ["solve", "ieee13", "--tol", "0"],
        ["solve", "ieee13", "--method", "magic"],
        ["solve", "ieee13", "--plot", "x.gif"],
        ["solve", "ieee13", "--csv", "/no/such/folder/x.csv"],
        ["batch", "ieee13"],
        ["batch", "ieee13", "--scenarios", "0"],
        ["batch", "ieee13", "--scenarios", "5", "--spread", "-1"],
        ["batch", "ieee13", "--scenarios", "5", "--seed", "-1"],
        ["batch", "ieee13", "--scenarios", "5", "--batch-size", "1.5"],
        ["batch", "ieee13", "--scenarios", "5", "--plot", "x.html"],
        ["convert", "ieee13", "x.xml"],
        ["convert", "ieee13", "/no/such/folder/x.dss"],
    ],
)
def test_bad_usage(capsys, argv):
    code, out, err = run(capsys, *argv)
    assert code == 2 and out == "" and "error: " in err


def test_a_file_is_not_converted_into_itself(capsys, two_bus):
    before = two_bus.read_bytes()
    code, _, err = run(capsys, "convert", two_bus, two_bus)
    assert code == 2 and "into itself" in err and two_bus.read_bytes() == before


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["validate", str(tmp_path / "no.json"), "--debug"])


def test_help_and_version_are_no_errors(capsys):
    assert run(capsys, "--help")[0] == 0
    assert run(capsys, "--version")[:2] == (0, f"gridjax {gridjax.__version__}\n")


def test_markup_in_names_is_text(capsys, tmp_path):
    gridjax.write_json(two_bus_feeder().replace(name="[bold]x[/nope]"), tmp_path / "m.json")
    code, out, _ = run(capsys, "validate", tmp_path / "m.json")
    assert code == 0 and "[bold]x[/nope]" in out
