"""What a shield cannot do: `python -m benchmarks.shield_limits`.

DER control on IEEE 123 without control, with `gridjax.env.shield`, on days of the held-out seeds of
docs/offline_results.md.

*Every battery full in each step*: what the search then still leaves (from no control, and from cars that wait while
batteries give all they have) is the loads' doing. A controller, whose batteries run empty, cannot be below it by more
than the search falls short.

*Mistaken*: the shield believes other loads than there are: each of them off by a normal error of 10 % in every step, or
all of them at 1/1.05 of what they are. *With room*: it further believes limits that are 0.005 pu tighter, and ratings
that are 5 % lower. Writes docs/shield_limits.md, .json.
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
from gridjax.env.der_control import DerControl, DerParams
from gridjax.env.environment import Environment, Outcome, Wrapped
from gridjax.env.shield import shield

NAME = "DerControl-ieee123-v0"


@dataclass(frozen=True)
class Full(Wrapped):
    """The environment with every battery full at the beginning of each step."""

    def advance(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Outcome]:
        """As the environment, from full batteries."""
        storage = dataclasses.replace(state.storage, kwh=jnp.asarray(params.batteries.kwh_rated))
        return self.env.advance(key, dataclasses.replace(state, storage=storage), action, params)


@dataclass(frozen=True)
class Belief:
    """What a mistaken shield takes the parameters for.

    Attributes:
      error: standard deviation of a load's error in a step, over the load.
      low: all loads by this share higher than believed.
      room: whether limits and ratings are believed to be tighter.
    """

    error: float = 0.0
    low: float = 0.0
    room: bool = False

    def __call__(self, params: DerParams) -> DerParams:
        """The parameters with other loads and limits."""
        kw, kvar = params.days.load_kw, params.days.load_kvar
        scale = (1 + self.error * jax.random.normal(jax.random.key(7), kw.shape, kw.dtype)) / (1 + self.low)
        out = dataclasses.replace(
            params, days=dataclasses.replace(params.days, load_kw=kw * scale, load_kvar=kvar * scale)
        )
        if not self.room:
            return out
        ratings = {kind: 0.95 * rating for kind, rating in params.grid.rating_a.items()}
        grid = dataclasses.replace(params.grid, rating_a=ratings)
        return dataclasses.replace(out, low=params.low + 0.005, high=params.high - 0.005, grid=grid)


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
    cases: dict[str, Environment] = {
        "no control": env, "no control, shielded": guarded,
        "no control, shielded, every battery full in each step": Full(env.horizon, env.failure_penalty, guarded),
    }  # fmt: skip
    mistaken = {"each load off by 10 %": {"error": 0.1}, "all loads 5 % above belief": {"low": 0.05}}
    for name, wrong in mistaken.items():
        for room in (False, True):
            with_room = ", with room" if room else ""
            one = dataclasses.replace(guarded, model=Belief(room=room, **wrong))
            cases[f"no control, shielded, mistaken: {name}{with_room}"] = one
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
        "# What a shield cannot do", "", (__doc__ or "").split("\n\n", 1)[1].strip(), "",
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
    parser.add_argument("--days", type=int, default=240, help="of each of the ten held-out seeds")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    asked = parser.parse_args()
    record = measure(asked.days, asked.steps)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "shield_limits.json").write_text(json.dumps(record, indent=1) + "\n")
    (asked.out / "shield_limits.md").write_text(page(record))


if __name__ == "__main__":
    main()
