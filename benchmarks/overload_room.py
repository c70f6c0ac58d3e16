"""Overloads that no control of the devices was found to avoid: `python -m benchmarks.overload_room`.

DER control on IEEE 123, on the held-out days of docs/offline_results.md. In each step every battery is full again and
nothing has to be charged or fed in: what then remains after the shield's search (`gridjax.env.shield`, from no control
and from cars that wait while batteries give all they have) is the loads' doing. A controller, whose batteries run
empty, cannot be below it by more than the search falls short. Writes docs/overload_room.md, .json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.evaluation import evaluate_policy, held_out
from benchmarks.offline_results import HELD_OUT, made_on, sunniest, violations
from gridjax.env import policies
from gridjax.env.der_control import DerControl
from gridjax.env.environment import Outcome, Wrapped
from gridjax.env.shield import shield

NAME = "DerControl-ieee123-v0"


@dataclass(frozen=True)
class Full(Wrapped):
    """The environment with every battery full at the beginning of each step."""

    def advance(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Outcome]:
        """As the environment, from full batteries."""
        storage = dataclasses.replace(state.storage, kwh=jnp.asarray(params.batteries.kwh_rated))
        return self.env.advance(key, dataclasses.replace(state, storage=storage), action, params)


def measure(days: int, steps: int) -> dict[str, Any]:
    """Shares of steps that violate voltage limits and ratings, of all days and of the sunniest quarter."""
    started = time.time()
    env, params, keys = held_out(NAME, HELD_OUT, days)
    assert isinstance(env, DerControl)
    pv, batteries, cars = len(env.inverters), len(env.batteries), len(env.cars)
    all_out = np.repeat([0.0, 1.0, 1.0, -1.0], (pv, pv, batteries, cars))
    guarded = shield(env, backup=tuple(all_out.tolist()), steps=steps)
    sunny, nothing = sunniest(params), policies.nothing(env, params)
    out: dict[str, Any] = {"name": NAME, "days": len(keys), "steps": steps}
    cases = {
        "no control": env, "no control, shielded": guarded,
        "no control, shielded, every battery full in each step": Full(env.horizon, env.failure_penalty, guarded),
    }  # fmt: skip
    for who, one in cases.items():
        played = evaluate_policy(one, params, nothing, keys)
        out[who] = [violations(played, part)[:2].tolist() for part in (slice(None), sunny)]
        print(who, out[who], flush=True)
    return {**out, "seconds": time.time() - started, "made_on": made_on()}


def page(record: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for who, value in record.items():
        if who.startswith("no control"):
            (voltage, overload), (bright, over) = value
            shares = (overload, over, voltage, bright)
            rows.append(f"| {who} | " + " | ".join(f"{100 * share:.3g} %" for share in shares) + " |")
    lines = [
        "# Overloads that remain", "", " ".join((__doc__ or "").split()), "",
        f"{record['name']}, {record['days']} days, up to {record['steps']} steps from each start; "
        f"{record['seconds']:.0f} s on {record['made_on']}.", "",
        "| policy | steps with an overload | of the sunniest quarter of the days | steps with a voltage outside its "
        "limits | of the sunniest quarter |", "|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--days", type=int, default=365, help="of each of the ten held-out seeds")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    asked = parser.parse_args()
    record = measure(asked.days, asked.steps)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "overload_room.json").write_text(json.dumps(record, indent=1) + "\n")
    (asked.out / "overload_room.md").write_text(page(record))


if __name__ == "__main__":
    main()
