"""The IEEE 123-node feeder, solved once and for 10,000 random load scenarios, and checked against OpenDSS.

    python examples/demo.py --out demo_out --scenarios 10000 --seed 0

Writes voltage_profile.png, oneline.png, feeder.html, scenarios.png and summary.json. Exits with 1 if a scenario does
not converge, or if a voltage is off OpenDSS's by more than 1e-7 pu; without dss-python it says that nothing was
checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from rich.console import Console
from rich.table import Table

import gridjax
from gridjax import plot, scenarios
from gridjax.commands import run_with_progress
from gridjax.summary import summarize

TOLERANCE_PU = 1e-7
CHECKED = 20  # scenarios that OpenDSS solves as well
DRAW = scenarios.Draw(spread=0.3, low=0.5, high=1.2, most=2.0)


def opendss_voltages(feeder: gridjax.Feeder) -> np.ndarray:
    """OpenDSS's complex voltages in pu, in the order of `feeder.node_names`."""
    from dss import DSS

    engine = DSS.NewContext()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "feeder.dss"
        gridjax.write_opendss(feeder, script)
        engine.Text.Command = f'redirect "{script}"'
        for command in ("set controlmode=off", "set tolerance=1e-10", "set maxiterations=1000", "solve"):
            engine.Text.Command = command
    circuit = engine.ActiveCircuit
    if not circuit.Solution.Converged:
        raise RuntimeError("OpenDSS did not converge")
    flat = np.asarray(circuit.AllBusVolts)
    volts = dict(zip((n.lower() for n in circuit.AllNodeNames), flat[0::2] + 1j * flat[1::2], strict=True))
    base = [1e3 * bus.base_kv for bus in feeder.buses for _ in bus.nodes]
    return np.array([volts[name.lower()] for name in feeder.node_names]) / base


def largest_deviations(
    feeder: gridjax.Feeder, grid: gridjax.Grid, key: jax.Array, outcome: scenarios.Outcome, count: int
) -> list[float]:
    """Largest |dV| in pu against OpenDSS: of the nominal point, then of the first scenarios.

    Of a scenario also what the batch found, its lowest and its highest voltage, is compared.
    """
    draws = jax.vmap(lambda number: scenarios.load_multipliers(key, number, grid.nominal, DRAW))(np.arange(count))
    factors = np.concatenate([np.ones((1, len(feeder.loads))), draws])
    solve = jax.jit(jax.vmap(lambda f: gridjax.solve(grid, scenarios.with_loads(grid.nominal, f)).v))
    out = []
    for number, (factor, v) in enumerate(zip(factors, np.asarray(solve(factors)), strict=True), -1):
        loads = (
            dataclasses.replace(load, kw=load.kw * float(f), kvar=load.kvar * float(f))
            for load, f in zip(feeder.loads, factor, strict=True)
        )
        theirs = opendss_voltages(feeder.replace(loads=tuple(loads)))
        deviations = [np.abs(v - theirs).max()]
        if number >= 0:
            deviations.append(abs(outcome.min_pu[number] - np.abs(theirs).min()))
            deviations.append(abs(outcome.max_pu[number] - np.abs(theirs).max()))
        out.append(float(max(deviations)))
    return out


def solve_nominal(feeder: gridjax.Feeder, grid: gridjax.Grid) -> tuple[gridjax.PowerFlow, dict]:
    """The nominal point, with the times of compiling and solving."""
    started = time.perf_counter()
    solver = jax.jit(gridjax.solve).lower(grid, grid.nominal).compile()
    compiled = time.perf_counter()
    flow = jax.block_until_ready(solver(grid, grid.nominal))
    seconds = {"seconds_compile": compiled - started, "seconds_solve": time.perf_counter() - compiled}
    return flow, summarize(feeder, grid, grid.nominal, flow) | seconds


def draw_pictures(out: Path, feeder: gridjax.Feeder, grid: gridjax.Grid, flow: gridjax.PowerFlow, outcome) -> None:
    plot.voltage_profile(feeder, flow, out / "voltage_profile.png")
    plot.oneline(feeder, grid, grid.nominal, flow, out / "oneline.png")
    plot.page(feeder, grid, grid.nominal, flow, out / "feeder.html")
    plot.voltage_histogram(feeder.name, outcome, out / "scenarios.png")


def show(console: Console, summary: dict, out: Path) -> None:
    nominal, batch, check = summary["nominal"], summary["scenarios"], summary["opendss"]
    table = Table(title="gridjax on the IEEE 123-node feeder", title_justify="left", show_header=False)
    voltages = "no result"
    if nominal["converged"]:
        voltages = f"{nominal['min_voltage_pu']:.4f} to {nominal['max_voltage_pu']:.4f} pu"
    rows = {
        "device, precision": f"{summary['device']}, {summary['dtype']}",
        "feeder": f"{nominal['buses']} buses, {nominal['nodes']} nodes",
        "nominal point": f"{voltages}, {nominal['iterations']} iterations, {1e3 * nominal['seconds_solve']:.1f} ms",
        "scenarios": f"{batch['converged']} of {batch['count']} converged",
        "compile time": f"{nominal['seconds_compile']:.1f} s for one, {batch['seconds_compile']:.1f} s for a batch",
        "run time": f"{batch['seconds_run']:.2f} s, {batch['scenarios_per_second']:,.0f} scenarios/s",
        "OpenDSS": "not checked: dss-python is not installed"
        if not check["checked"]
        else f"largest |dV| {check['max_dv_pu']:.1e} pu over the nominal point and {check['scenarios']} scenarios",
        "pictures": f"{out}/voltage_profile.png, oneline.png, scenarios.png",
        "page": f"{out}/feeder.html",
        "numbers": f"{out}/summary.json",
    }
    for label, text in rows.items():
        table.add_row(label, text)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--scenarios", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.scenarios < 1:
        parser.error("--scenarios must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)

    feeder = gridjax.feeders.ieee123()
    with errors.status("compiling the feeder"):
        grid = gridjax.compile(feeder)
        flow, nominal = solve_nominal(feeder, grid)
    key = jax.random.key(options.seed)
    outcome, seconds = run_with_progress(feeder, grid, options.scenarios, errors, key=key, draw=DRAW, batch_size=500)
    check: dict = {"checked": importlib.util.find_spec("dss") is not None, "tolerance_pu": TOLERANCE_PU}
    if check["checked"]:
        with errors.status("checking against OpenDSS"):
            deviations = largest_deviations(feeder, grid, key, outcome, min(CHECKED, options.scenarios))
        check |= {
            "scenarios": len(deviations) - 1,
            "nominal_max_dv_pu": deviations[0],
            "max_dv_pu": float(np.max(deviations)),
        }
    with errors.status("drawing"):
        draw_pictures(options.out, feeder, grid, flow, outcome)
    device = jax.devices()[0]
    summary = {
        "gridjax_version": gridjax.__version__,
        "device": f"{device.platform} ({device.device_kind})",
        "dtype": str(grid.nominal.load_kw.dtype),
        "seed": options.seed,
        "nominal": nominal,
        "scenarios": {
            "count": options.scenarios,
            "converged": int(outcome.converged.sum()),
            "seconds_compile": seconds.compile,
            "seconds_run": seconds.run,
            "scenarios_per_second": options.scenarios / seconds.run,
            **voltage_quantiles(outcome),
        },
        "opendss": check,
    }
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    show(console, summary, options.out)
    accurate = not check["checked"] or check["max_dv_pu"] <= TOLERANCE_PU
    return 0 if nominal["converged"] and bool(outcome.converged.all()) and accurate else 1


def voltage_quantiles(outcome: scenarios.Outcome) -> dict:
    """Quantiles 0, 5, 50, 95 and 100 % of the converged scenarios' lowest and highest voltages."""
    good = outcome.converged
    if not good.any():
        return {"min_voltage_pu_quantiles": [], "max_voltage_pu_quantiles": []}
    at = (0.0, 0.05, 0.5, 0.95, 1.0)
    return {
        "min_voltage_pu_quantiles": np.quantile(outcome.min_pu[good], at).tolist(),
        "max_voltage_pu_quantiles": np.quantile(outcome.max_pu[good], at).tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
