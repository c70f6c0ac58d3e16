# %% [markdown]
# # Optimal reactive set-points for photovoltaic inverters
#
# Photovoltaic inverters are placed on a feeder at seeded loads. For 1,024 random scenarios of load and sun at once,
# their reactive powers $x$ (per unit of the ratings) are chosen to
#
# $$\min_x \; P_\text{loss}(x) \quad\text{subject to}\quad v_\text{min} \le |v_n(x)| \le v_\text{max}, \qquad
# x^2 + (p/s)^2 \le 1,$$
#
# where the voltages solve the three-phase power flow. Gradients go through `gridjax.solve`. The result stands beside no
# control and beside the default volt-var droop of IEEE 1547-2018, category B, whose fixed point is checked against
# OpenDSS's own InvControl.
#
#     python examples/volt_var_dispatch.py --feeder ieee123 --scenarios 1024 --out docs/examples

# %%
"""Optimal volt-var dispatch of photovoltaic inverters beside no control, IEEE 1547's droop and OpenDSS's InvControl.

    python examples/volt_var_dispatch.py --feeder ieee123 european_lv --scenarios 1024 --out docs/examples

Prints a table and writes volt_var_dispatch.json and one picture a feeder. Exits with 1 if a power flow or a droop does
not converge, or if the droop is off OpenDSS's InvControl by more than 1e-6.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import flax.struct
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import Bounds, NonlinearConstraint, minimize

sys.path.insert(0, str(Path(__file__).resolve().parent))

import inverters
from inverters import CATEGORY_B, Fleet, InvControl

import gridjax
from gridjax.control.regulation import regulate
from gridjax.control.settings import Inverters

UNIT_PU = 0.01  # voltages beyond a limit count in this unit in the penalty
VIOLATION_PU = 1e-4  # what counts as a violation in the tables
MEMORY = 0.5  # of the voltages that pressed, from step to step
PASSES = 200  # of the coordinate descent within a step
AGREEMENT = 1e-6  # with InvControl: voltages in pu and set-points per unit of the rating

# %% [markdown]
# ## The case
# A `Case` holds what all scenarios share. `scale_kw`, the losses at nominal load and half the sun, makes the objective
# of order one. The metric of the method, the losses' Hessian and the voltages' sensitivities at one point, comes
# from central differences of the exact gradients; it changes little from scenario to scenario.


# %%
@flax.struct.dataclass
class Case:
    """The grid, its inverters and limits, and the metric: Hessian (m, m) and dv/dx (nodes, m) in `UNIT_PU`."""

    grid: gridjax.Grid
    fleet: Fleet
    low: jax.Array
    high: jax.Array
    scale_kw: jax.Array
    hessian: jax.Array
    dv_dx: jax.Array


def draw(case: Case, key: jax.Array, count: int) -> gridjax.OperatingPoint:
    """Random scenarios: loads between 20 and 100 % with a log-normal factor of spread 0.3 each, sun between 0 and 1.

    The sun is common to the feeder, and each inverter keeps 80 to 100 % of it.
    """

    def one(key):
        level_key, load_key, sun_key, cloud_key = jax.random.split(key, 4)
        point = case.grid.nominal
        own = jnp.exp(0.3 * jax.random.normal(load_key, point.load_kw.shape) - 0.045)
        factor = jax.random.uniform(level_key, (), minval=0.2, maxval=1.0) * own
        cloud = jax.random.uniform(cloud_key, case.fleet.peak_kw.shape, minval=0.8, maxval=1.0)
        return dataclasses.replace(
            point,
            load_kw=point.load_kw * factor,
            load_kvar=point.load_kvar * factor,
            generation_kw=case.fleet.peak_kw * jax.random.uniform(sun_key) * cloud,
        )

    return jax.vmap(one)(jax.random.split(key, count))


# %% [markdown]
# ## The augmented Lagrangian and its gradient
# With $c$ the voltages beyond their limits (Hestenes, 1969; Powell, 1969; Rockafellar, 1973),
#
# $$L(x) = P_\text{loss}(x)/P_0 + \frac{1}{2\rho}\sum_n \left(\max(0, \mu_n + \rho\,c_n(x))^2 - \mu_n^2\right).$$


# %%
class Value(NamedTuple):
    """One evaluation: L and its gradient (m,), losses in kW, excess over the limits (2, nodes) in pu, convergence."""

    merit: jax.Array
    gradient: jax.Array
    loss_kw: jax.Array
    excess: jax.Array
    converged: jax.Array


def merit(x: jax.Array, case: Case, point: gridjax.OperatingPoint, mu: jax.Array, rho: jax.Array):
    """L for one scenario: set-points x (m,), multipliers mu (2, nodes), penalty rho."""
    at = inverters.with_setpoints(case.fleet, point, x)
    flow = gridjax.solve(case.grid, at, tol=1e-10)
    loss = gridjax.losses(case.grid, at, flow).real
    v = jnp.abs(flow.v)
    excess = jnp.stack([case.low - v, v - case.high])
    pressed = jnp.maximum(mu + rho * excess / UNIT_PU, 0.0)
    value = loss / case.scale_kw + jnp.sum(pressed**2 - mu**2) / (2 * rho)
    return value, (loss, excess, flow.converged)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, 0, 0, 0))
def evaluate(x: jax.Array, case: Case, point: gridjax.OperatingPoint, mu: jax.Array, rho: jax.Array) -> Value:
    """L, its gradient through the power flow, and what belongs to them, for a batch of scenarios."""
    (value, (loss, excess, converged)), gradient = jax.value_and_grad(merit, has_aux=True)(x, case, point, mu, rho)
    return Value(value, gradient, loss, excess, converged)


@jax.jit
def no_derivative(case: Case, points: gridjax.OperatingPoint, x: jax.Array):
    """Losses in kW, voltages (scenarios, nodes) and convergence at given set-points."""

    def one(point, x):
        at = inverters.with_setpoints(case.fleet, point, x)
        flow = gridjax.solve(case.grid, at, tol=1e-10)
        return gridjax.losses(case.grid, at, flow).real, jnp.abs(flow.v), flow.converged

    return jax.vmap(one)(points, x)


@jax.jit
def at_rest(case: Case, control: Inverters, points: gridjax.OperatingPoint):
    """Set-points of the droop's fixed points, and what `no_derivative` gives at them."""

    def one(point):
        at, flow = regulate(case.grid, point, control)
        loss = gridjax.losses(case.grid, at, flow).real
        return at.generation_kvar / case.fleet.kva, (loss, jnp.abs(flow.v), flow.converged)

    return jax.vmap(one)(points)


# %% [markdown]
# ## Projected gradient in a metric
# Every step solves, for each scenario, the box-constrained quadratic problem
# $\min_d g^T d + \tfrac12 d^T B d$, $|x + d| \le \sqrt{1-(p/s)^2}$, whose matrix
# $B = H + \rho\,S_A^T S_A$ takes the losses' Hessian and the sensitivities of the voltages that press on a limit
# (scaled gradient projection; Bertsekas, 1982). A step that does not lower $L$ is shortened.


# %%
@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, 0))
def projected_step(case: Case, x, gradient, active, rho, room) -> jax.Array:
    """The step d (m,), by projected coordinate descent; `active` (nodes,) is 1 where a voltage presses, else 0."""
    b = case.hessian + rho * (case.dv_dx.T * active[None]) @ case.dv_dx
    diagonal = jnp.diagonal(b)

    def coordinate(k, carry):
        d, slope = carry
        i = k % x.shape[0]
        moved = jnp.clip(x[i] + d[i] - slope[i] / diagonal[i], -room[i], room[i]) - x[i]
        return d.at[i].set(moved), slope + b[i] * (moved - d[i])

    return jax.lax.fori_loop(0, PASSES * x.shape[0], coordinate, (jnp.zeros_like(x), gradient))[0]


class Settings(NamedTuple):
    """Multiplier updates, steps between them, scenarios in a batch, and the penalty: first, largest."""

    outer: int = 15
    inner: int = 6
    batch: int = 256
    rho: float = 0.1
    most_rho: float = 100.0


def choose(which: jax.Array, new: Any, old: Any) -> Any:
    """`new` in the scenarios where `which` holds, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def pressing(at: Value, mu: jax.Array, rho: jax.Array) -> jax.Array:
    """1 at each node whose voltage takes part in L, else 0, (scenarios, nodes)."""
    return jnp.any(mu + rho[:, None, None] * at.excess / UNIT_PU > 0, axis=1).astype(mu.dtype)


def dispatch(case: Case, points: gridjax.OperatingPoint, settings: Settings) -> tuple[jax.Array, jax.Array, Value]:
    """Optimises one batch of scenarios.

    Returns:
      Set-points x (scenarios, m), multipliers (scenarios, 2, nodes), and the last evaluation of L at them.
    """
    count = points.load_kw.shape[0]
    room = jax.vmap(inverters.room, in_axes=(None, 0))(case.fleet, points)
    x = jnp.zeros((count, room.shape[1]))
    mu, rho = jnp.zeros((count, 2, case.low.shape[0])), jnp.full(count, settings.rho, float)
    worst = jnp.full(count, jnp.inf)
    at = evaluate(x, case, points, mu, rho)
    for k in range(settings.outer):
        length, active = jnp.ones(count), pressing(at, mu, rho)
        for _ in range(settings.inner):
            d = projected_step(case, x, at.gradient, active, rho, room)
            trial = x + length[:, None] * d
            new = evaluate(trial, case, points, mu, rho)
            descent = jnp.sum(at.gradient * (trial - x), axis=1)
            better = new.converged & (new.merit <= at.merit + 1e-4 * descent + 1e-12)
            now = pressing(new, mu, rho)
            # What pressed before, or at a point that was refused, counts in the next try as well.
            active = jnp.maximum(now, jnp.where(better, MEMORY, 1.0)[:, None] * active)
            x, at = choose(better, (trial, new), (x, at))
            length = jnp.where(better, 1.0, length / 2)
        if k + 1 < settings.outer:
            mu = jnp.maximum(mu + rho[:, None, None] * at.excess / UNIT_PU, 0.0)
            now = jnp.max(at.excess, axis=(1, 2))
            rho = jnp.where(
                (now > 0.25 * worst) & (now > 0.1 * VIOLATION_PU), jnp.minimum(4 * rho, settings.most_rho), rho
            )
            worst = jnp.minimum(worst, now)
            at = evaluate(x, case, points, mu, rho)
    return x, jnp.maximum(mu + rho[:, None, None] * at.excess / UNIT_PU, 0.0), at


def stationarity(x: jax.Array, gradient: jax.Array, room: jax.Array) -> jax.Array:
    """The largest entry of x - P(x - gradient), per scenario: 0 where no feasible direction improves L."""
    return jnp.max(jnp.abs(x - jnp.clip(x - gradient, -room, room)), axis=1)


# %% [markdown]
# ## Setting up a case


# %%
def build(name: str, seed: int, batch: int) -> tuple[gridjax.Feeder, Case, str]:
    """The feeder with inverters, its case, and the limits in words; `batch` is the size that will be used anyway."""
    feeder, fleet = inverters.place(gridjax.feeders.load(name), seed)
    grid = gridjax.compile(feeder)
    low, high, words = inverters.limits(feeder)
    m, nodes = len(feeder.pv_systems), len(feeder.node_names)
    case = Case(grid, fleet, low, high, jnp.ones(()), jnp.eye(m), jnp.zeros((nodes, m)))
    return feeder, measure_metric(case, batch), words


def measure_metric(case: Case, batch: int, step: float = 0.05) -> Case:
    """The case with its scale, Hessian and sensitivities, at nominal load and half the sun."""
    m = case.fleet.kva.shape[0]
    idle = dataclasses.replace(case.grid.nominal, generation_kw=0.5 * case.fleet.peak_kw)
    unlimited = dataclasses.replace(case, low=jnp.full_like(case.low, -1e3), high=jnp.full_like(case.high, 1e3))
    points = repeat(idle, batch)
    mu, rho = jnp.zeros((batch, 2, len(case.low))), jnp.ones(batch)
    steps = step * jnp.concatenate([jnp.eye(m), -jnp.eye(m), jnp.zeros((-(2 * m) % batch or batch, m))])
    parts = [evaluate(x, unlimited, points, mu, rho) for x in steps.reshape(-1, batch, m)]
    gradient, excess = (jnp.concatenate(a) for a in zip(*((p.gradient, p.excess[:, 1]) for p in parts), strict=True))
    scale = parts[-1].loss_kw[-1]
    hessian = (gradient[:m] - gradient[m : 2 * m]) / (2 * step * scale)
    values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
    hessian = (vectors * jnp.maximum(values, 1e-6 * values[-1])[None]) @ vectors.T
    dv_dx = (excess[:m] - excess[m : 2 * m]).T / (2 * step * UNIT_PU)
    return dataclasses.replace(case, scale_kw=scale, hessian=hessian, dv_dx=dv_dx)


def repeat(tree: Any, count: int) -> Any:
    """A new first axis along which everything is repeated."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), tree)


# %% [markdown]
# ## Comparing
# Every way of control is described by the same figures, over the scenarios whose power flows converged.


# %%
def beyond(case: Case, v: np.ndarray) -> np.ndarray:
    """By how much each scenario's worst voltage is beyond its limit, (scenarios,) in pu; negative inside."""
    return np.maximum(np.asarray(case.low) - v, v - np.asarray(case.high)).max(axis=1)


def describe(case: Case, loss_kw: np.ndarray, v: np.ndarray, converged: np.ndarray) -> dict:
    """Mean losses, share of scenarios with a voltage beyond the limits, and the excess in pu."""
    excess = beyond(case, v)
    outside = (v > np.asarray(case.high) + VIOLATION_PU) | (v < np.asarray(case.low) - VIOLATION_PU)
    return {
        "scenarios": len(excess),
        "not_converged": int(np.sum(~converged)),
        "mean_loss_kw": float(loss_kw.mean()),
        "violating_share": float(np.mean(excess > VIOLATION_PU)),
        "violating_nodes_mean": float(outside.sum(axis=1).mean()),
        "worst_excess_pu": float(max(excess.max(), 0.0)),
        "mean_excess_pu": float(np.maximum(excess, 0.0).mean()),
    }


def check_invcontrol(feeder: gridjax.Feeder, points: gridjax.OperatingPoint, x, v, loss_kw, count: int) -> dict:
    """The droop's fixed points beside OpenDSS's InvControl, on the first scenarios."""
    if importlib.util.find_spec("dss") is None:
        return {"checked": False}
    engine = InvControl(feeder, CATEGORY_B)
    gaps, losses = [], []
    for k in range(min(count, len(x))):
        their_x, their_v, their_loss = engine.solve(jax.tree.map(lambda a, k=k: a[k], points))
        gaps.append((np.abs(their_x - x[k]).max(), np.abs(np.abs(their_v) - v[k]).max(), abs(their_loss - loss_kw[k])))
        losses.append(their_loss)
    worst = np.max(gaps, axis=0)
    return {
        "checked": True,
        "scenarios": len(gaps),
        "max_setpoint_gap": float(worst[0]),
        "max_voltage_gap_pu": float(worst[1]),
        "max_loss_gap_kw": float(worst[2]),
        "mean_loss_kw": float(np.mean(losses)),
        "mean_loss_kw_droop": float(np.mean(loss_kw[: len(gaps)])),
    }


def watched(case: Case, excess: np.ndarray, most: int = 40) -> np.ndarray:
    """Nodes for SciPy to keep within a limit: of those closer than 0.01 pu, the inverters' and the `most` extreme."""
    nodes = np.unique(np.concatenate([np.asarray(case.fleet.nodes).ravel(), np.argsort(-excess)[:most]]))
    return nodes[excess[nodes] > -0.01 / UNIT_PU]


def scipy_optimum(case: Case, point: gridjax.OperatingPoint, x: np.ndarray) -> dict:
    """The same problem for one scenario by SciPy's interior-point method (R. H. Byrd, M. E. Hribar, J. Nocedal, 1999).

    It starts from zero, sees only the voltages of `watched` nodes (the excess that is reported is that of all), and its
    derivatives are central differences of power flows: nothing of the dispatch's derivatives enters.
    """
    m, step = len(x), 1e-4
    points = repeat(point, 2 * m + 1)
    steps = step * jnp.concatenate([jnp.eye(m), -jnp.eye(m), jnp.zeros((1, m))])

    @functools.lru_cache(maxsize=8)
    def around(x: tuple[float, ...]):
        """Losses over the scale and voltages in the unit, and their derivatives."""
        loss, v, _ = no_derivative(case, points, jnp.asarray(x)[None] + steps)
        both = np.asarray(jnp.concatenate([loss[:, None] / case.scale_kw, v / UNIT_PU], axis=1))
        return both[-1], (both[:m] - both[m : 2 * m]).T / (2 * step)

    low, high = np.asarray(case.low) / UNIT_PU, np.asarray(case.high) / UNIT_PU
    seen = np.stack([around(tuple(y))[0][1:] for y in (x, 0 * x)])
    below, above = (watched(case, a) for a in ((low - seen).max(axis=0), (seen - high).max(axis=0)))

    def margins(x):
        v = around(tuple(x))[0][1:]
        return np.concatenate([v[below] - low[below], high[above] - v[above]])

    def slopes(x):
        dv_dx = around(tuple(x))[1][1:]
        return np.concatenate([dv_dx[below], -dv_dx[above]])

    room = np.asarray(inverters.room(case.fleet, point))
    # SciPy's stubs know neither derivatives as functions nor bounds as arrays.
    constraint: Any = NonlinearConstraint
    bounds: Any = Bounds
    constraints = [constraint(margins, 0.0, np.inf, jac=slopes)] if len(below) + len(above) else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "delta_grad == 0.0")  # its Hessian's update where a margin is linear
        found = minimize(
            lambda x: around(tuple(x))[0][0],
            np.zeros(m),
            method="trust-constr",
            jac=lambda x: around(tuple(x))[1][0],
            bounds=bounds(-room, room, keep_feasible=True),
            constraints=constraints,
            options={"gtol": 1e-7, "xtol": 1e-10, "maxiter": 500},
        )
    out: dict[str, Any] = {"success": found.status in (1, 2), "constraints": len(below) + len(above)}
    for name, at in (("", found.x), ("_dispatch", x)):
        both = around(tuple(at))[0]
        out["loss_kw" + name] = float(both[0] * case.scale_kw)
        out["excess_pu" + name] = float(np.maximum(low - both[1:], both[1:] - high).max() * UNIT_PU)
    return out | {"largest_setpoint_gap": float(np.abs(found.x - x).max())}


# %% [markdown]
# ## One feeder from end to end


# %%
def study(name: str, options: argparse.Namespace, console: Console) -> tuple[dict, dict]:
    """All figures of one feeder, and the arrays for its picture."""
    began = time.perf_counter()
    settings = Settings(batch=min(options.batch, options.scenarios))
    feeder, case, words = build(name, options.seed, settings.batch)
    control = inverters.volt_var(feeder, case.grid, CATEGORY_B)
    batches = -(-options.scenarios // settings.batch)
    every = draw(case, jax.random.key(options.seed), batches * settings.batch)
    parts: dict[str, list] = {
        "no control": [],
        "droop": [],
        "optimal": [],
        "x": [],
        "droop_x": [],
        "still": [],
    }
    seconds = {"setup": time.perf_counter() - began, "dispatch": 0.0, "droop": 0.0}
    for k in track(range(batches), f"{name}: batches of {settings.batch}", console=console, transient=True):
        points = jax.tree.map(lambda a, k=k: a[k * settings.batch : (k + 1) * settings.batch], every)
        room = jax.vmap(inverters.room, in_axes=(None, 0))(case.fleet, points)
        began = time.perf_counter()
        droop_x, droop = jax.block_until_ready(at_rest(case, control, points))
        seconds["droop"] += time.perf_counter() - began
        began = time.perf_counter()
        x, _, last = jax.block_until_ready(dispatch(case, points, settings))
        seconds["dispatch"] += time.perf_counter() - began
        parts["no control"].append(no_derivative(case, points, jnp.zeros_like(x)))
        parts["droop"].append(droop)
        parts["optimal"].append(no_derivative(case, points, x))
        parts["still"].append(stationarity(x, last.gradient, room))
        parts["x"].append(x)
        parts["droop_x"].append(droop_x)
    count = options.scenarios
    joined: dict[str, Any] = {
        key: jax.tree.map(lambda *a: np.concatenate(a)[:count], *value) for key, value in parts.items()
    }
    ways = ("no control", "droop", "optimal")
    droop_loss, droop_v, _ = joined["droop"]
    checked = min(options.checked, count)
    result = {
        "feeder": name,
        "inverters": len(feeder.pv_systems),
        "peak_kw": float(jnp.sum(case.fleet.peak_kw)),
        "load_kw": sum(load.kw for load in feeder.loads),
        "limits": words,
        "ways": {way: describe(case, *joined[way]) for way in ways},
        "stationarity": describe_stationarity(case, joined),
        "opendss": check_invcontrol(feeder, every, joined["droop_x"], droop_v, droop_loss, checked),
        "scipy": [
            {"scenario": k} | scipy_optimum(case, jax.tree.map(lambda a, k=k: a[k], every), joined["x"][k])
            for k in from_hard_to_mild(case, joined, options.scipy)
        ],
        "seconds": seconds,
    }
    return result, {"case": case, "joined": joined, "ways": ways}


def describe_stationarity(case: Case, joined: dict[str, Any]) -> dict:
    """Quantiles of the projected gradient at the end, of the scenarios within the limits and of the others."""
    inside = beyond(case, joined["optimal"][1]) <= VIOLATION_PU
    out: dict[str, Any] = {"within_limits": int(inside.sum()), "beyond_limits": int((~inside).sum())}
    if inside.any():
        quantiles = np.quantile(joined["still"][inside], (0.5, 0.99, 1.0)).tolist()
        out |= dict(zip(("median", "p99", "largest"), quantiles, strict=True))
    return out


def from_hard_to_mild(case: Case, joined: dict[str, Any], count: int) -> list[int]:
    """Scenarios that are beyond the limits without control and that the dispatch mends, from the furthest beyond on."""
    before, after = (beyond(case, joined[way][1]) for way in ("no control", "optimal"))
    mended = np.flatnonzero((after <= VIOLATION_PU) & (before > VIOLATION_PU))
    order = mended[np.argsort(-before[mended])]
    picked = np.linspace(0, max(len(order) - 1, 0), min(count, len(order))).astype(int)
    return order[picked].tolist()


def draw_picture(name: str, arrays: dict, path: Path) -> None:
    """Highest and lowest voltage of all scenarios, and losses beside no control."""
    case, joined = arrays["case"], arrays["joined"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colours = {"no control": "#777777", "droop": "#D55E00", "optimal": "#0072B2"}
    idle = joined["no control"][0]
    for way in arrays["ways"]:
        loss, v, _ = joined[way]
        excess = 100 * beyond(case, v)
        axes[0].plot(np.sort(excess), np.linspace(0, 1, len(excess)), color=colours[way], label=way)
        if way != "no control":
            axes[1].scatter(idle, loss, s=4, color=colours[way], label=way)
    axes[0].axvline(0, color="black", linewidth=0.8)
    axes[0].set(xlabel="worst voltage beyond its limit, % (negative: inside)", ylabel="share of scenarios", title=name)
    axes[0].legend(frameon=False)
    axes[1].axline((0, 0), slope=1, color="#777777", linewidth=0.8)
    axes[1].set(xlabel="losses without control, kW", ylabel="losses, kW")
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# %%
def show(console: Console, result: dict) -> None:
    """The table of one feeder."""
    title = f"{result['feeder']}: {result['inverters']} inverters, {result['peak_kw']:.0f} kW peak; {result['limits']}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "losses, kW", "scenarios beyond limits", "nodes beyond", "worst excess, pu"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way, figures in result["ways"].items():
        table.add_row(
            way,
            f"{figures['mean_loss_kw']:.3f}",
            f"{100 * figures['violating_share']:.1f} %",
            f"{figures['violating_nodes_mean']:.2f}",
            f"{figures['worst_excess_pu']:.5f}",
        )
    console.print(table)
    still, dss = result["stationarity"], result["opendss"]
    if still["within_limits"]:
        console.print(
            f"projected gradient at the end, {still['within_limits']} scenarios within limits: "
            f"median {still['median']:.1e}, 99 % {still['p99']:.1e}, largest {still['largest']:.1e}"
        )
    if dss["checked"]:
        console.print(
            f"droop and OpenDSS's InvControl, {dss['scenarios']} scenarios: set-points within "
            f"{dss['max_setpoint_gap']:.1e}, voltages within {dss['max_voltage_gap_pu']:.1e} pu, "
            f"mean losses {dss['mean_loss_kw_droop']:.4f} and {dss['mean_loss_kw']:.4f} kW"
        )
    else:
        console.print("OpenDSS's InvControl: not checked, dss-python is not installed")
    for one in result["scipy"]:
        console.print(
            f"SciPy on scenario {one['scenario']} ({'done' if one['success'] else 'gave up'}): "
            f"{one['loss_kw']:.5f} kW, excess {one['excess_pu']:.1e} pu; dispatch {one['loss_kw_dispatch']:.5f} kW, "
            f"{one['excess_pu_dispatch']:.1e} pu"
        )
    console.print(f"seconds: {', '.join(f'{k} {v:.1f}' for k, v in result['seconds'].items())}")


def sound(result: dict) -> bool:
    """Whether all power flows and droops converged and the droop agrees with InvControl."""
    dss = result["opendss"]
    agreed = not dss["checked"] or max(dss["max_setpoint_gap"], dss["max_voltage_gap_pu"]) <= AGREEMENT
    flows = all(figures["not_converged"] == 0 for figures in result["ways"].values())
    return flows and agreed


def main(argv: list[str] | None = None) -> int:
    """Runs the study; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feeder", nargs="+", default=["ieee123", "european_lv"], choices=list(inverters.PENETRATION))
    parser.add_argument("--scenarios", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256, help="scenarios optimised at once")
    parser.add_argument("--checked", type=int, default=32, help="scenarios that OpenDSS solves as well")
    parser.add_argument("--scipy", type=int, default=2, help="scenarios that SciPy solves as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("volt_var_out"))
    options = parser.parse_args(argv)
    if min(options.scenarios, options.batch) < 1:
        parser.error("--scenarios and --batch must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=110, force_jupyter=False)
    progress = Console(stderr=True, highlight=False, force_jupyter=False)
    path = options.out / "volt_var_dispatch.json"
    command = f"python examples/volt_var_dispatch.py {' '.join(sys.argv[1:] if argv is None else argv)}".strip()
    meta, results = inverters.provenance(command, options.seed), []
    for name in options.feeder:
        result, arrays = study(name, options, progress)
        results.append(result)
        draw_picture(name, arrays, options.out / f"volt_var_dispatch_{name}.png")
        path.write_text(json.dumps({"meta": meta, "results": results}, indent=1, allow_nan=False) + "\n")
        show(console, result)
    return 0 if all(map(sound, results)) else 1


# %%
if __name__ == "__main__":
    raise SystemExit(main())
