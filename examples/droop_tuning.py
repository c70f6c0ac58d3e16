# %% [markdown]
# # Tuning volt-var droop curves over a year
#
# Every photovoltaic inverter of a feeder follows a volt-var droop, a piecewise linear function of its own voltage.
# The voltages follow from all inverters together, so that the reactive powers $x$ are a fixed point
#
# $$x = h(u(x);\,\theta).$$
#
# The parameters $\theta$ of the curves are tuned by gradient descent through that fixed point (implicit function
# theorem, `gridjax.control.regulation.regulate`), over a sample of days of a synthetic year; all other days judge the
# result.
#
#     python examples/droop_tuning.py --feeder ieee123 --steps 60 --out docs/examples

# %%
"""Droop curves of photovoltaic inverters tuned over a year, beside the defaults of IEEE 1547-2018.

    python examples/droop_tuning.py --feeder ieee123 --steps 60 --out docs/examples

Two tunings: one curve shared by all inverters, and then one curve for each. Prints a table for the days held out and
writes droop_tuning.json and droop_tuning.png. Exits with 1 if a power flow or a droop does not converge, or if the
tuned curves are no better on the days held out than category B's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import flax.struct
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

import inverters
from inverters import CATEGORY_A, CATEGORY_B, NO_CONTROL, Fleet

import gridjax
from gridjax.control.regulation import regulate
from gridjax.control.settings import Inverters
from gridjax.weather import clear_sky

UNIT_PU = 0.01  # voltages beyond a limit count in this unit in the objective
VIOLATION_PU = 1e-4  # what counts as a violation in the table
LATITUDE_DEG = 40.0

# %% [markdown]
# ## A synthetic year
# Hour $h$ of day $d$ has, from the key and from $(d, h)$ alone,
#
# - a load level $(0.8 + 0.2\cos(2\pi(d-15)/365))\,(0.35 + 0.25\,e^{-((h-8)/2)^2} + 0.45\,e^{-((h-19)/3)^2})$, times a
#   log-normal factor of mean 1 and spread 0.25 for each load (a winter-peaking feeder of homes);
# - a clear sky of $1.098\cos z\;e^{-0.057/\cos z}$ kW/m² (Haurwitz, 1945) at the middle of the hour, where
#   $\cos z = \sin\varphi\sin\delta + \cos\varphi\cos\delta\cos(15°(h - 11.5))$ and
#   $\delta = 23.45°\sin(2\pi(284 + d)/365)$ (Cooper, 1969), at latitude 40°;
# - a clearness of the day, uniform in 0.25 to 1, times one of each inverter and hour, uniform in 0.85 to 1.


# %%
def hour_of_year(grid: gridjax.Grid, fleet: Fleet, key: jax.Array, day: jax.Array, hour: jax.Array):
    """The operating point of one hour: day 1 to 365, hour 0 to 23."""
    day_key = jax.random.fold_in(key, day)
    load_key, cloud_key = jax.random.split(jax.random.fold_in(day_key, hour + 1))
    point = grid.nominal
    season = 0.8 + 0.2 * jnp.cos(2 * jnp.pi * (day - 15) / 365)
    daily = 0.35 + 0.25 * jnp.exp(-(((hour - 8) / 2) ** 2)) + 0.45 * jnp.exp(-(((hour - 19) / 3) ** 2))
    own = jnp.exp(0.25 * jax.random.normal(load_key, point.load_kw.shape) - 0.25**2 / 2)
    factor = season * daily * own
    sun = clear_sky(day, hour + 0.5, LATITUDE_DEG)
    clearness = jax.random.uniform(day_key, minval=0.25, maxval=1.0)
    cloud = jax.random.uniform(cloud_key, fleet.peak_kw.shape, minval=0.85, maxval=1.0)
    return dataclasses.replace(
        point,
        load_kw=point.load_kw * factor,
        load_kvar=point.load_kvar * factor,
        generation_kw=fleet.peak_kw * jnp.minimum(sun * clearness, 1.0) * cloud,
    )


def split_days(seed: int, per_month: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Days (1 to 365) to train on and days held out, none in both.

    Args:
      seed: of the choice.
      per_month: training days in each twelfth of the year.
      held_out: held-out days in each twelfth; 0 is all that are left.

    Raises:
      ValueError: there are not so many days.
    """
    if per_month < 1 or held_out < 0 or per_month + held_out > 30:
        raise ValueError(f"{per_month} training days and {held_out} held out in a month of 30: take fewer")
    rng = np.random.default_rng(seed)
    months = [rng.permutation(m) for m in np.array_split(np.arange(1, 366), 12)]
    stop = per_month + held_out if held_out else None
    return np.sort(np.concatenate([m[:per_month] for m in months])), np.sort(
        np.concatenate([m[per_month:stop] for m in months])
    )


# %% [markdown]
# ## Curves that stay curves
# IEEE 1547-2018, table 8, allows $0.95 \le V_\text{ref} \le 1.05$, $V_\text{ref} - 0.03 \le V_2 \le V_\text{ref}$,
# $V_\text{ref} - 0.18 \le V_1 \le V_2 - 0.02$, the mirror image above, and $0 \le Q \le 0.44$ (category B's
# capability). A logistic function maps seven free numbers onto these ranges, so that the curve is monotone and allowed
# at every step of the descent.


# %%
def to_curve(z: jax.Array) -> jax.Array:
    """Free numbers (..., 7) to curves (..., 6) V1, V2, V3, V4, Q1, Q4."""
    part = jax.nn.sigmoid(z)
    reference = 0.95 + 0.1 * part[..., 0]
    below, above = 0.03 * part[..., 1], 0.03 * part[..., 2]
    v2, v3 = reference - below, reference + above
    v1 = v2 - 0.02 - (0.16 - below) * part[..., 3]
    v4 = v3 + 0.02 + (0.16 - above) * part[..., 4]
    return jnp.stack([v1, v2, v3, v4, 0.44 * part[..., 5], 0.44 * part[..., 6]], axis=-1)


def from_category_b() -> jax.Array:
    """The free numbers (7,) of category B's defaults, with 99 % of its Q1 and Q4: the ends lie at infinity."""
    part = jnp.array([0.5, 2 / 3, 2 / 3, 0.04 / 0.14, 0.04 / 0.14, 0.99, 0.99])
    return jnp.log(part) - jnp.log1p(-part)


# %% [markdown]
# ## The objective
# The mean over the hours of $P_\text{loss}/P_0 + \sum_n (e_n/0.01)^2$, where $e_n$ is by how much the voltage of node
# $n$ is beyond its limit in per unit, and $P_0$ the mean losses of the training hours without control.


# %%
@flax.struct.dataclass
class Study:
    """What all hours share: grid, inverters, limits (nodes,), the inverters' settings, and P_0 in kW."""

    grid: gridjax.Grid
    fleet: Fleet
    low: jax.Array
    high: jax.Array
    settings: Inverters
    scale_kw: jax.Array


@flax.struct.dataclass
class Hour:
    """One hour's outcome: objective, losses in kW, node voltages (nodes,) in pu, whether all of it converged."""

    objective: jax.Array
    loss_kw: jax.Array
    v: jax.Array
    converged: jax.Array


def outcome(study: Study, point: gridjax.OperatingPoint, curve: jax.Array) -> Hour:
    """The hour with the inverters at rest on curves (m, 6); differentiable."""
    at, flow = regulate(study.grid, point, inverters.with_droop(study.settings, curve))
    loss, v = gridjax.losses(study.grid, at, flow).real, jnp.abs(flow.v)
    beyond = jnp.maximum(jnp.maximum(study.low - v, v - study.high), 0.0) / UNIT_PU
    value = loss / study.scale_kw + jnp.sum(beyond**2)
    return Hour(value, loss, v, flow.converged)


def curve_for_all(study: Study, curve: tuple[float, ...] | jax.Array) -> jax.Array:
    """One curve for all inverters, (m, 6)."""
    return jnp.tile(jnp.asarray(curve, float), (study.fleet.kva.shape[0], 1))


@jax.jit
def simulate(study: Study, points: gridjax.OperatingPoint, curve: jax.Array) -> Hour:
    """All hours of a batch under curves (m, 6)."""
    return jax.vmap(outcome, in_axes=(None, 0, None))(study, points, curve)


def mean_objective(z: jax.Array, study: Study, points: gridjax.OperatingPoint) -> jax.Array:
    """The objective of free numbers z (m, 7) over a batch of hours; differentiable."""
    return jnp.mean(jax.vmap(outcome, in_axes=(None, 0, None))(study, points, to_curve(z)).objective)


value_and_gradient = jax.jit(jax.value_and_grad(mean_objective))

# %% [markdown]
# ## Descent
# Adam (Kingma and Ba, 2015) on batches of training hours, with a cosine decay and clipped gradients.


# %%
def tune(
    study: Study,
    hours: Callable[[np.ndarray], gridjax.OperatingPoint],
    numbers: np.ndarray,
    z: jax.Array,
    options: argparse.Namespace,
    progress: Console,
    label: str,
) -> tuple[jax.Array, list[float]]:
    """Free numbers after `options.steps` steps, and the objective of each step's batch before it."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(options.rate, options.steps, 0.05))
    )
    state, history = optimiser.init(z), []
    rng = np.random.default_rng(options.seed)
    order = np.concatenate([rng.permutation(numbers) for _ in range(1 + options.steps * options.batch // len(numbers))])
    for k in track(range(options.steps), label, console=progress, transient=True):
        batch = hours(order[k * options.batch : (k + 1) * options.batch])
        # One curve for all is differentiated as one for each, so that one compilation serves both tunings.
        value, gradient = value_and_gradient(jnp.broadcast_to(z, (study.fleet.kva.shape[0], 7)), study, batch)
        gradient = gradient.sum(axis=0, keepdims=True) if len(z) == 1 else gradient
        updates, state = optimiser.update(gradient, state)
        z = jnp.asarray(optax.apply_updates(z, updates))
        history.append(float(value))
        if not np.isfinite(history[-1]):
            raise RuntimeError(f"step {k}: the objective is {value}; lower --rate")
    return z, history


def judge(
    study: Study,
    hours: Callable[[np.ndarray], gridjax.OperatingPoint],
    numbers: np.ndarray,
    curve: jax.Array,
    batch: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of given hours under curves (m, 6), and each hour's lowest and highest voltage (hours, 2)."""
    parts = []
    for start in range(0, len(numbers), batch):
        chosen = numbers[np.minimum(np.arange(start, start + batch), len(numbers) - 1)]  # one size, one compilation
        out = simulate(study, hours(chosen), curve)
        excess = jnp.maximum(study.low[None] - out.v, out.v - study.high[None])
        extremes = jnp.stack([out.v.min(axis=1), out.v.max(axis=1)], axis=1)
        beyond = jnp.mean(excess > VIOLATION_PU, axis=1)
        parts.append((out.objective, out.loss_kw, out.converged, excess.max(axis=1), beyond, extremes))
    objective, loss, converged, excess, beyond, extremes = (
        np.concatenate([np.asarray(p[i]) for p in parts])[: len(numbers)] for i in range(6)
    )
    figures = {
        "objective": float(objective.mean()),
        "mean_loss_kw": float(loss.mean()),
        "violating_hours": float(np.mean(excess > VIOLATION_PU)),
        "violating_node_hours": float(beyond.mean()),
        "worst_excess_pu": float(max(excess.max(), 0.0)),
        "not_converged": int(np.sum(~converged)),
    }
    return figures, extremes


# %% [markdown]
# ## The study


# %%
def build(name: str, seed: int) -> tuple[gridjax.Feeder, Study, str]:
    """The feeder with inverters, the study, and the limits in words; P_0 is still 1."""
    feeder, fleet = inverters.place(gridjax.feeders.load(name), seed)
    grid = gridjax.compile(feeder)
    low, high, words = inverters.limits(feeder)
    return feeder, Study(grid, fleet, low, high, inverters.volt_var(feeder, grid), jnp.ones(())), words


def run(options: argparse.Namespace, console: Console) -> tuple[dict, dict]:
    """Everything but output: the figures, and the arrays for the picture."""
    feeder, study, words = build(options.feeder, options.seed)
    key = jax.random.key(options.seed)
    make = jax.jit(jax.vmap(lambda n: hour_of_year(study.grid, study.fleet, key, 1 + n // 24, n % 24)))

    def hours(numbers: np.ndarray) -> gridjax.OperatingPoint:
        return make(jnp.asarray(numbers, jnp.int32))

    train_days, test_days = split_days(options.seed, options.train_days, options.test_days)
    train, test = (((days - 1)[:, None] * 24 + np.arange(24)).ravel() for days in (train_days, test_days))
    idle, _ = judge(study, hours, train, curve_for_all(study, NO_CONTROL), options.chunk)
    study = dataclasses.replace(study, scale_kw=jnp.asarray(idle["mean_loss_kw"], float))
    began = time.perf_counter()
    shared, history = tune(study, hours, train, from_category_b()[None], options, console, "one curve for all")
    each = jnp.tile(shared, (len(feeder.pv_systems), 1))
    own, more = tune(study, hours, train, each, options, console, "a curve for each")
    seconds = time.perf_counter() - began
    ways = {
        "no control": curve_for_all(study, NO_CONTROL),
        "1547 category A": curve_for_all(study, CATEGORY_A),
        "1547 category B": curve_for_all(study, CATEGORY_B),
        "tuned, one for all": curve_for_all(study, to_curve(shared[0])),
        "tuned, one for each": to_curve(own),
    }
    table, extremes = {}, {}
    for way in track(ways, "days held out", console=console, transient=True):
        held_out, extremes[way] = judge(study, hours, test, ways[way], options.chunk)
        table[way] = {"held_out": held_out, "training": judge(study, hours, train, ways[way], options.chunk)[0]}
    result = {
        "feeder": options.feeder,
        "inverters": len(feeder.pv_systems),
        "limits": words,
        "training_hours": len(train),
        "held_out_hours": len(test),
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "ways": table,
        "curve_names": ["v1", "v2", "v3", "v4", "q1", "q4"],
        "tuned_one_for_all": np.asarray(to_curve(shared[0])).tolist(),
        "tuned_one_for_each": np.asarray(to_curve(own)).tolist(),
        "history": {"one for all": history, "one for each": more},
        "seconds_tuning": seconds,
    }
    return result, {"ways": ways, "extremes": extremes, "study": study}


# %%
def draw_picture(result: dict, arrays: dict, path: Path) -> None:
    """The curves, the objective's history, and the lowest and highest voltages of the hours held out."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    colours = dict(zip(arrays["ways"], ("#777777", "#E69F00", "#D55E00", "#0072B2", "#009E73"), strict=True))
    u = np.linspace(0.88, 1.12, 500)
    for way in list(arrays["ways"])[1:]:
        each = way.endswith("each")
        for k, row in enumerate(arrays["ways"][way] if each else arrays["ways"][way][:1]):
            asked = np.interp(u, row[:4], [row[4], 0.0, 0.0, -row[5]])
            width, label = (0.6, way if k == 0 else None) if each else (1.8, way)
            left.plot(u, asked, color=colours[way], linewidth=width, label=label, zorder=1 if each else 2)
    left.set(xlabel="terminal voltage, pu", ylabel="reactive power over rating", title="curves")
    left.legend(frameon=False, fontsize=7)
    done = 0
    for label, history in result["history"].items():
        colour = colours["tuned, " + label]
        middle.plot(np.arange(done, done + len(history)), history, color=colour, linewidth=0.5)
        width = max(1, min(10, len(history) // 4))
        mean = np.convolve(history, np.ones(width) / width, mode="valid")
        middle.plot(done + width - 1 + np.arange(len(mean)), mean, color=colour, label=f"{label}, mean of {width}")
        done += len(history)
    middle.set(xlabel="step", ylabel="objective of the batch", title="descent")
    middle.legend(frameon=False, fontsize=7)
    for way, extremes in arrays["extremes"].items():
        for k in range(2):
            label = way if k else None
            v = np.sort(extremes[:, k])
            right.plot(v, np.linspace(0, 1, len(v)), color=colours[way], label=label, linestyle=("--", "-")[k])
    for limit in (float(jnp.max(arrays["study"].low)), float(jnp.min(arrays["study"].high))):
        right.axvline(limit, color="black", linewidth=0.8)
    right.set(xlabel="lowest (dashed), highest voltage, pu", ylabel="share of hours", title="days held out")
    right.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(console: Console, result: dict) -> None:
    """The table of the days held out."""
    title = (
        f"{result['feeder']}: {result['inverters']} inverters, {result['limits']}; tuned on "
        f"{result['training_hours']} hours, judged on {result['held_out_hours']} others"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", "objective", "losses, kW", "hours beyond limits", "node-hours beyond", "worst excess, pu"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way, figures in result["ways"].items():
        f = figures["held_out"]
        table.add_row(
            way,
            f"{f['objective']:.4f}",
            f"{f['mean_loss_kw']:.3f}",
            f"{100 * f['violating_hours']:.2f} %",
            f"{100 * f['violating_node_hours']:.3f} %",
            f"{f['worst_excess_pu']:.5f}",
        )
    console.print(table)
    values = ", ".join(f"{n} {v:.4f}" for n, v in zip(result["curve_names"], result["tuned_one_for_all"], strict=True))
    console.print(f"tuned, one for all: {values}")
    console.print(f"tuning took {result['seconds_tuning']:.0f} s")


def sound(result: dict) -> bool:
    """Whether everything converged and both tunings beat category B on the days held out."""
    ways = result["ways"]
    converged = all(f["not_converged"] == 0 for way in ways.values() for f in way.values())
    default = ways["1547 category B"]["held_out"]["objective"]
    tuned = [ways[way]["held_out"]["objective"] for way in ways if way.startswith("tuned")]
    return converged and max(tuned) < default


def main(argv: list[str] | None = None) -> int:
    """Runs the study; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feeder", default="ieee123", choices=list(inverters.PENETRATION))
    parser.add_argument("--train-days", type=int, default=2, help="of each month")
    parser.add_argument("--test-days", type=int, default=0, help="of each month; 0: all others")
    parser.add_argument("--steps", type=int, default=60, help="of each tuning")
    parser.add_argument("--batch", "--scenarios", type=int, default=48, help="hours in a step")
    parser.add_argument("--chunk", type=int, default=512, help="hours simulated at once")
    parser.add_argument("--rate", type=float, default=0.1, help="Adam's learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("droop_tuning_out"))
    options = parser.parse_args(argv)
    if min(options.steps, options.batch, options.chunk) < 1:
        parser.error("--steps, --batch and --chunk must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=110, force_jupyter=False)
    progress = Console(stderr=True, highlight=False, force_jupyter=False)
    result, arrays = run(options, progress)
    command = f"python examples/droop_tuning.py {' '.join(sys.argv[1:] if argv is None else argv)}".strip()
    meta = inverters.provenance(command, options.seed)
    path = options.out / "droop_tuning.json"
    path.write_text(json.dumps({"meta": meta, "result": result}, indent=1, allow_nan=False) + "\n")
    draw_picture(result, arrays, options.out / "droop_tuning.png")
    show(console, result)
    return 0 if sound(result) else 1


# %%
if __name__ == "__main__":
    raise SystemExit(main())
