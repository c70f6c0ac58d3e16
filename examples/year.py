"""A year of quarter-hours on a feeder with its regulators and capacitor controls, in bounded memory.

    python examples/year.py --feeder ieee123

Prints energies, voltages beyond 0.95 and 1.05 pu in node-hours, tap moves, seconds and peak memory as JSON.
Exits with 1 if a step's power flow does not converge.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import jax

jax.config.update("jax_enable_x64", True)

import gridjax
from gridjax.control.switching import switching
from gridjax.days import region, shapes
from gridjax.series import Controls, energies, simulate_long

STEPS = 96  # a day


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="a year of quarter-hours")
    parser.add_argument("--feeder", default="ieee123")
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    feeder = gridjax.feeders.load(args.feeder)
    grid = gridjax.compile(feeder)
    series = shapes(jax.random.key(args.seed), region(feeder), 0, STEPS, args.days)
    controls = Controls(switching=switching(feeder, grid))
    start = time.perf_counter()
    record, _ = simulate_long(grid, series, controls, part=7 * STEPS, hours=24 / STEPS)
    seconds = time.perf_counter() - start
    lost = int((~record.converged).sum())
    result = {
        "feeder": args.feeder,
        "steps": len(record.hour),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        **{name: round(float(value), 2) for name, value in energies(record, 24 / STEPS).items()},
    }
    print(json.dumps(result, indent=1))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
