"""A million load scenarios of the IEEE 123-bus feeder through little memory, in one call.

    python examples/million_scenarios.py --out demo_out/million

Each scenario is drawn from its number inside the compiled program, solved, and boiled down to four numbers, so that
neither loads nor voltages of all scenarios ever exist: `jax.lax.map` goes through them in batches. Writes a picture of
the distributions and the figures (JSON). Exit status 1 if a scenario did not converge, or if those that are solved once
more one by one differ.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import gridjax
from gridjax.scenarios import Draw, load_multipliers, with_loads

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CHECKED = 16  # scenarios that are solved once more


def main() -> int:
    parser = argparse.ArgumentParser(description="A million load scenarios in one call")
    parser.add_argument("--feeder", default="ieee123")
    parser.add_argument("--scenarios", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo_out/million"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    feeder = gridjax.feeders.load(args.feeder)
    grid = gridjax.compile(feeder)
    key = jax.random.key(args.seed)

    def one(number):
        """Lowest and highest voltage (pu), losses (kW) and whether the scenario converged."""
        point = with_loads(grid.nominal, load_multipliers(key, number, grid.nominal, Draw()))
        flow = gridjax.solve(grid, point)
        v = jnp.abs(flow.v)
        return jnp.min(v), jnp.max(v), gridjax.losses(grid, point, flow).real, flow.converged

    before = peak_mb()
    numbers = jnp.arange(args.scenarios)
    start = time.perf_counter()
    stream = jax.jit(lambda numbers: jax.lax.map(one, numbers, batch_size=args.batch)).lower(numbers).compile()
    compiled = time.perf_counter()
    print(f"Compiled in {compiled - start:.1f} s; {args.scenarios:,} scenarios of {feeder.name} run ...", flush=True)
    found = jax.block_until_ready(stream(numbers))
    seconds = time.perf_counter() - compiled
    after = peak_mb()
    low, high, lost, converged = (np.asarray(a) for a in found)

    some = np.random.default_rng(args.seed).integers(0, args.scenarios, CHECKED)
    single = jax.jit(one)
    worst = max(abs(float(single(i)[k]) - float(a[i])) for i in some for k, a in enumerate((low, high)))
    summary = {
        "feeder": feeder.name,
        "scenarios": args.scenarios,
        "batch": args.batch,
        "seed": args.seed,
        "not_converged": int((~converged).sum()),
        "compile_seconds": round(compiled - start, 2),
        "run_seconds": round(seconds, 2),
        "scenarios_per_second": round(args.scenarios / seconds),
        "peak_memory_mb": round(after),
        "peak_memory_before_mb": round(before),
        "checked_one_by_one": CHECKED,
        "largest_difference_pu": worst,
        "lowest_voltage_pu": percentiles(low),
        "highest_voltage_pu": percentiles(high),
        "losses_kw": percentiles(lost),
        "machine": f"{platform.machine()}, {jax.devices()[0].platform}",
        "versions": f"Python {platform.python_version()}, JAX {jax.__version__}",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "million_scenarios.json").write_text(json.dumps(summary, indent=2) + "\n")
    picture(low, high, lost, feeder.name, args.out / "million_scenarios.png")
    print(json.dumps(summary, indent=2))
    return 0 if summary["not_converged"] == 0 and worst < 1e-7 else 1


def peak_mb() -> float:
    """The most memory that this process has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def percentiles(a: np.ndarray) -> dict[str, float]:
    return {str(p): round(float(np.percentile(a, p)), 6) for p in (0, 1, 50, 99, 100)}


def picture(low: np.ndarray, high: np.ndarray, lost: np.ndarray, name: str, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for values, label in ((low, "lowest node"), (high, "highest node")):
        left.hist(values, bins=200, histtype="step", label=label)
    left.axvline(0.95, color="grey", linewidth=0.8, linestyle="--")
    left.axvline(1.05, color="grey", linewidth=0.8, linestyle="--", label="ANSI C84.1, range A")
    left.set(xlabel="voltage (pu)", ylabel="scenarios", yscale="log")
    left.legend(frameon=False, fontsize=8)
    right.hist(lost, bins=200, histtype="step", color="tab:red")
    right.set(xlabel="losses (kW)", ylabel="scenarios", yscale="log")
    figure.suptitle(f"{len(low):,} load scenarios of {name}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
