# %% [markdown]
# # Line impedances and phase labels from smart-meter data
#
# A utility's record of its low-voltage cables is off: lengths by 20 % or so, and customers stand on the wrong phase.
# Their meters know better. At step $t$ the meter of customer $c$ gives $|V|$, $P$ and $Q$ with the errors of its class,
#
# $$ z_{tc} = (1 + g_c)\,|V_c(f, P_t, Q_t, E_t)| + n_{tc}, $$
#
# with $g_c$ a constant error of the meter, $n_{tc}$ noise, $E_t$ the unknown voltage of the source. The unknowns $f$
# are factors on the recorded impedance of each *section* of line. $|V_c|$ is the power flow itself, through
# `gridjax.assemble` and `gridjax.solve`, and so are its derivatives $J = \partial V/\partial f$.
#
# ## What cannot be identified
#
# - *Lines without current* (no customer behind them) drop no voltage: their $J$ is zero. They keep their record.
# - *Lines in series* with no customer between them carry the same current: their columns of $J$ are proportional. They
#   make up one section with one factor.
# - *Short or lightly loaded sections*, whose drop is small beside the noise: only together with their neighbours.
#   Their error bar stays that of the record. The sum along the path to a customer is known far better than its parts.
# - *R apart from X*: the drop is nearly $(RP + XQ)/V$. In cables X is small, and Q follows P; the table says what
#   remains.
# - *The common level* of all meters' errors against $E_t$: only the class of the meters tells.
#
# The record is a measurement too, $f \sim N(1, 0.2^2)$, and the class of the meters another, $g \sim N(0, 0.002^2)$: so
# nothing is singular, and an error bar of 0.2 says that the data added nothing.
#
#     python examples/line_estimation.py --feeder european_lv --steps 96 --scenarios 100 --seed 0 --out docs/examples

# %%
from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
import optax
from estimation.metering import (
    Demand,
    Study,
    customer_meters,
    customers,
    join_series,
    labels_of,
    path_errors,
    scaled,
    solve_steps,
    study,
    with_labels,
)
from estimation.reports import line_picture, line_table, provenance
from rich.console import Console
from rich.progress import track

import gridjax
from gridjax.feeder import Feeder, split_terminal

RECORD = 0.20  # standard deviation of the record's factors
GAIN = 0.002  # of a voltage meter's constant error
NOISE = 0.001  # of one reading of it
POWER = 0.005  # of one reading of P or Q, relative
DEMAND = {"european_lv": (1.0, 0.7), "ieee13": (0.7, 0.3)}  # mean share of the rated load; spread of one reading
WRONG_LABELS = 0.3  # share of customers whose phase is wrong in the record
CHORDS = 4  # Gauss-Newton steps with one Jacobian
RELAXED = 60  # gradient steps for the phase labels

# %% [markdown]
# ## The measurement function
#
# `estimation.metering` finds the sections and places the meters. The compiled functions:


# %%
class Model:
    """The compiled functions of a study; parameters are arguments, so that nothing is folded into constants."""

    def __init__(self, work: Study):
        """Compiles on first use."""
        self.work = work
        self.parameters = jax.tree.map(jnp.asarray, gridjax.lay_out(work.feeder)[1])
        self._assemble = jax.jit(lambda p, at, d: jax.jvp(lambda r, x: scaled(work, p, r, x), at, d))
        self._solve = jax.jit(functools.partial(solve_steps, work))
        self._solve_along = jax.jit(functools.partial(_solve_along, work))

    def voltages(self, f: jax.Array, demand: Demand) -> jax.Array:
        """(steps, meters) in pu at factors (sections,) on R and X alike.

        Raises:
          ValueError: a step's power flow has not converged.
        """
        grid, _ = self._assemble(self.parameters, (f, f), (jnp.zeros_like(f),) * 2)
        v = self._solve(grid, demand)
        lost = np.flatnonzero(~np.isfinite(np.asarray(v)).all(axis=1))
        if len(lost):
            raise ValueError(
                f"the power flow of step {lost[0]} ({len(lost)} in all) has not converged: lower the loads"
            )
        return v

    def slopes(self, f: jax.Array, demand: Demand, console: Console) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Derivatives by factors on R, on X, (steps, meters, sections) each, and by the source (steps, meters)."""
        count, out = len(f), []
        for i in track(range(2 * count + 1), "derivatives by sections", console=console, transient=True):
            r, x = (jnp.zeros(count).at[i - k].set(1.0 if 0 <= i - k < count else 0.0) for k in (0, count))
            grid, along = self._assemble(self.parameters, (f, f), (r, x))
            out.append(self._solve_along(grid, along, demand, jnp.asarray(float(i == 2 * count))))
        every = jnp.stack(out, axis=2)
        return every[..., :count], every[..., count:-1], every[..., -1]


def _solve_along(work: Study, grid: gridjax.Grid, along: gridjax.Grid, demand: Demand, source: jax.Array) -> jax.Array:
    """The voltages' derivative in the direction of a grid's tangent and of a change of the source, (steps, meters)."""

    def voltages(g, e):
        return solve_steps(work, g, demand._replace(source=e))

    moved = jnp.full_like(demand.source, source)
    return jax.jvp(voltages, (grid, demand.source), (along, moved))[1]


# %% [markdown]
# ## Data: synthetic households, seeded meters
#
# Half-hours: a common daily shape, times a log-normal factor for each load and step; power factors between 0.9 and 1,
# drawn anew at each step; the source wanders by 1 %.


# %%
def draw_demand(key: jax.Array, feeder: Feeder, steps: int) -> Demand:
    """The true demand."""
    load_key, factor_key, source_key = jax.random.split(key, 3)
    hour = np.arange(steps)[:, None] / 2
    shape = 0.7 + 0.35 * np.cos(2 * np.pi * (hour - 19) / 24) + 0.2 * np.cos(4 * np.pi * (hour - 8) / 24)
    mean, spread = DEMAND[feeder.name]
    kw = jnp.array([mean * x.kw for x in feeder.loads])[None] * jnp.asarray(shape / shape.mean())
    kw = kw * jnp.exp(spread * jax.random.normal(load_key, kw.shape) - spread**2 / 2)
    cosine = jax.random.uniform(factor_key, kw.shape, minval=0.9, maxval=1.0)
    source = feeder.sources[0].pu + 0.01 * jax.random.normal(source_key, (steps,))
    return Demand(kw, kw * jnp.sqrt(1 / cosine**2 - 1), source)


class Readings(NamedTuple):
    """What the meters say: voltages in pu (steps, meters), kW and kvar (steps, loads)."""

    z: jax.Array
    kw: jax.Array
    kvar: jax.Array


def read_meters(key: jax.Array, v: jax.Array, demand: Demand) -> Readings:
    """Readings of true voltages and powers; each call draws other meters and other noise."""
    gain_key, noise_key, p_key, q_key = jax.random.split(key, 4)
    gain = GAIN * jax.random.normal(gain_key, (1, v.shape[1]))
    z = (1 + gain) * v + NOISE * jax.random.normal(noise_key, v.shape)
    powers = [a * (1 + POWER * jax.random.normal(k, a.shape)) for k, a in ((p_key, demand.kw), (q_key, demand.kvar))]
    return Readings(z, *powers)


# %% [markdown]
# ## Estimation and error bars
#
# Gauss-Newton in $(f, g, E_1 \ldots E_T)$. Each $E_t$ enters the readings of its own step alone: with $s_t$ its column,
# the projection $1 - s_t s_t^T / s_t^T s_t$ removes it from the normal equations. What is left is the Fisher
# information of $(f, g)$; its inverse is the covariance. The drop is almost linear in $f$, so one
# Jacobian serves all steps.


# %%
class Normal(NamedTuple):
    """The normal equations: columns (steps, meters, f and g) over NOISE, the source's (steps, meters), the inverse."""

    columns: jax.Array
    source: jax.Array
    covariance: jax.Array


@jax.jit
def normal_equations(slopes: jax.Array, source: jax.Array, v: jax.Array) -> Normal:
    """From derivatives by f (steps, meters, factors), by the source and the voltages (steps, meters)."""
    count = slopes.shape[2]
    gains = v[:, :, None] * jnp.eye(v.shape[1])[None]
    columns, s = jnp.concatenate([slopes, gains], axis=2) / NOISE, source / NOISE
    along = jnp.einsum("tm,tmk->tk", s, columns) / jnp.linalg.norm(s, axis=1)[:, None]
    prior = jnp.concatenate([jnp.full(count, RECORD**-2), jnp.full(v.shape[1], GAIN**-2)])
    information = jnp.einsum("tmk,tml->kl", columns, columns) - along.T @ along + jnp.diag(prior)
    return Normal(columns, s, jnp.linalg.inv(information))


@jax.jit
def _step(normal: Normal, v, z, f, g, e):
    """One Gauss-Newton step, and chi-square before it."""
    r = (z - (1 + g)[None] * v) / NOISE
    s, square = normal.source, jnp.sum(normal.source**2, axis=1)
    free = r - s * (jnp.einsum("tm,tm->t", s, r) / square)[:, None]
    gradient = jnp.einsum("tmk,tm->k", normal.columns, free)
    gradient += jnp.concatenate([(1 - f) / RECORD**2, -g / GAIN**2])
    d = normal.covariance @ gradient
    de = jnp.einsum("tm,tm->t", s, r - normal.columns @ d) / square
    return f + d[: len(f)], g + d[len(f) :], e + de, jnp.sum(r**2), jnp.max(jnp.abs(d[: len(f)]))


class Fit(NamedTuple):
    """Factors, meters' constant errors, source, chi-square of the voltages, the last step's largest change of f."""

    f: jax.Array
    g: jax.Array
    source: jax.Array
    chi_square: float
    last_step: float


def fit(model: Model, normal: Normal, data: Readings, f: jax.Array) -> Fit:
    """The most probable factors, from a start (sections,)."""
    e = jnp.full(data.z.shape[0], model.work.feeder.sources[0].pu, float)
    g, chi_square, last = jnp.zeros(data.z.shape[1]), jnp.inf, jnp.inf
    for _ in range(CHORDS):
        v = model.voltages(f, Demand(data.kw, data.kvar, e))
        f, g, e, chi_square, last = _step(normal, v, data.z, f, g, e)
    return Fit(f, g, e, float(chi_square), float(last))


# %% [markdown]
# ## Phase labels
#
# Every single-phase customer on a three-phase bus is tied to all three phases with weights $w_{ck} \ge 0$,
# $\sum_k w_{ck} = 1$: its power is split by them, and so is the voltage that its meter is said to see. Gradient
# descent on the logits, through the power flow, of the misfit of the drops between busbar and meter, each meter's mean
# taken off (its constant error, and the source's voltage, then do not matter). Rounding the weights
# gives the labels. Beside it the usual way: the phase of the busbar whose voltage correlates best with the meter's. It
# fails where the busbar is stiff (behind a regulator of the 13-node feeder its phases hardly move apart).


# %%
def correlated_labels(work: Study, data: Readings) -> np.ndarray:
    """The phase of the busbar whose voltage correlates best with the customer's."""
    z = np.asarray(data.z)
    z = z - z.mean(axis=0)
    z = z / np.linalg.norm(z, axis=0)
    return (z[:, -3:].T @ z[:, customer_meters(work)]).argmax(axis=0)


def relaxed_labels(work: Study, data: Readings, console: Console) -> tuple[np.ndarray, np.ndarray]:
    """Labels by gradient, and the weight of each before rounding, (customers,) both. Lengths are the record's."""
    feeder, who = work.feeder, np.array(customers(work.feeder))
    tripled = [x for k in range(3) for x in with_labels(feeder, np.full(len(who), k)).loads]
    keep = [i + k * len(feeder.loads) for k in range(3) for i in (range(len(feeder.loads)) if k == 0 else who)]
    names = [f"{tripled[i].name}@{i // len(feeder.loads)}" for i in keep]
    loads = tuple(dataclasses.replace(tripled[i], name=n) for i, n in zip(keep, names, strict=True))
    soft = feeder.replace(loads=loads)
    grid = gridjax.compile(soft)
    ends = work.ends[customer_meters(work)]
    bus = [split_terminal(feeder.loads[i].bus)[0] for i in who]
    at = np.array([[soft.node_names.index(f"{b}.{k + 1}") for k in range(3)] for b in bus])
    bar = work.ends[-3:, 0]
    z = data.z[:, -3:, None] - data.z[:, None, customer_meters(work)]  # (steps, phases, customers) measured drops
    rated = work.layout.node_volts[ends[:, 0]] / work.volts[customer_meters(work)]

    def loss(logits, grid, kw, kvar, z):
        w = jax.nn.softmax(logits, axis=1)
        share = jnp.ones(len(feeder.loads)).at[who].set(w[:, 0])
        share = jnp.concatenate([share, w[:, 1], w[:, 2]])
        whose = jnp.array([i % len(feeder.loads) for i in keep])

        def drops(p, q):
            point = dataclasses.replace(grid.nominal, load_kw=p[whose] * share, load_kvar=q[whose] * share)
            v = jnp.abs(gridjax.solve(grid, point).v)
            return v[bar][:, None] - v[at].T * rated[None]

        r = jax.vmap(drops)(kw, kvar) - z
        r = jnp.einsum("tkc,ck->tc", r, w)
        return jnp.sum((r - jnp.mean(r, axis=0, keepdims=True)) ** 2) / (2 * NOISE**2) / r.size

    adam = optax.adam(0.3)

    @jax.jit
    def step(logits, state, *arguments):
        value, slope = jax.value_and_grad(loss)(logits, *arguments)
        updates, state = adam.update(slope, state)
        return optax.apply_updates(logits, updates), state, value

    logits: Any = jnp.zeros((len(who), 3))
    state = adam.init(logits)
    for _ in track(range(RELAXED), "phase labels", console=console, transient=True):
        logits, state, _ = step(logits, state, grid, data.kw, data.kvar, z)
    weights = np.asarray(jax.nn.softmax(logits, axis=1))
    return weights.argmax(axis=1), weights.max(axis=1)


# %% [markdown]
# ## The study


# %%
def coverage(model: Model, normal: Normal, demand: Demand, key: jax.Array, draws: int, console: Console) -> np.ndarray:
    """(f - truth) over its error bar, (draws, sections); truth, meters and noise are drawn anew each time."""
    bars, out = jnp.sqrt(jnp.diagonal(normal.covariance))[: model.work.sections], []
    for k in track(jax.random.split(key, draws), "noise draws", console=console, transient=True):
        truth_key, meter_key = jax.random.split(k)
        truth = true_factors(truth_key, model.work.sections)
        data = read_meters(meter_key, model.voltages(truth, demand), demand)
        found = fit(model, normal, data, jnp.ones_like(truth))
        out.append(np.asarray((found.f - truth) / bars))
    return np.array(out)


def true_factors(key: jax.Array, count: int) -> jax.Array:
    """Factors as wrong as the record is said to be, none below 0.3."""
    return jnp.maximum(1 + RECORD * jax.random.normal(key, (count,)), 0.3)


def run(model: Model, steps: int, draws: int, seed: int, out: Path, console: Console) -> dict[str, Any]:
    """Everything once: labels, factors, error bars, coverage."""
    demand_key, truth_key, meter_key, label_key, draw_key = jax.random.split(jax.random.key(seed), 5)
    work = model.work
    demand = draw_demand(demand_key, work.feeder, steps)
    truth = true_factors(truth_key, work.sections)
    with console.status("solving the true feeder"):
        data = read_meters(meter_key, model.voltages(truth, demand), demand)
    right = labels_of(work.feeder)
    which_key, turn_key = jax.random.split(label_key)
    moved = jax.random.bernoulli(which_key, WRONG_LABELS, right.shape)
    turns = 1 + np.asarray(jax.random.bernoulli(turn_key, 0.5, right.shape))
    record = (right + np.where(moved, turns, 0)) % 3
    found_labels, certainty = relaxed_labels(work, data, console)
    labels = {"record": record, "correlation": correlated_labels(work, data), "power flow": found_labels}
    accuracy = {k: float(np.mean(a == right)) for k, a in labels.items()}
    if accuracy["power flow"] < 1:  # the impedances are then estimated with the labels that were found, right or wrong
        work = study(with_labels(work.feeder, found_labels))
        fitted = Model(work)
    else:
        fitted = model
    f, source = jnp.ones(work.sections), jnp.full(steps, work.feeder.sources[0].pu, float)
    for _ in range(2):
        measured = Demand(data.kw, data.kvar, source)
        r, x, s = fitted.slopes(f, measured, console)
        normal = normal_equations(r + x, s, fitted.voltages(f, measured))
        found = fit(fitted, normal, data, f)
        f, source = found.f, found.source
    apart = normal_equations(jnp.concatenate([r, x], axis=2), s, fitted.voltages(f, measured)).covariance
    count, deviation = work.sections, np.sqrt(np.asarray(jnp.diagonal(normal.covariance)))
    bars, both = deviation[: work.sections], np.sqrt(np.asarray(jnp.diagonal(apart)))
    scores = coverage(model, normal, demand, draw_key, draws, console) if fitted is model else np.zeros((0, count))
    cut = np.asarray(normal.covariance)[:count, :count]
    paths, recorded = (path_errors(work, np.asarray(a), np.asarray(truth), cut) for a in (f, jnp.ones(count)))
    line_picture(out / "line_estimation.png", work.feeder.name, truth, found.f, bars, RECORD, paths, accuracy)
    identified = bars < RECORD / 2
    return {
        "feeder": work.feeder.name, "record": RECORD, "steps": steps, "draws": len(scores), "seed": seed,
        "loads": len(work.feeder.loads), "customers": len(right), "lines": len(work.feeder.lines), "sections": count,
        "lines_without_current": int((work.section < 0).sum()),
        "labels_right": accuracy, "labels_least_weight": float(certainty.min()),
        "factor_rms_error_record": float(np.sqrt(np.mean((np.asarray(truth) - 1) ** 2))),
        "factor_rms_error": float(np.sqrt(np.mean((np.asarray(f - truth)) ** 2))),
        "sections_identified": int(identified.sum()),
        "factor_rms_error_identified": float(np.sqrt(np.mean((np.asarray(f - truth))[identified] ** 2))),
        "bar_least": float(bars.min()), "bar_median": float(np.median(bars)), "bar_largest": float(bars.max()),
        "bar_median_r_apart": float(np.median(both[:count])),
        "bar_median_x_apart": float(np.median(both[count : 2 * count])),
        "path_rms_error_record": float(np.sqrt(np.mean(recorded[0] ** 2))),
        "path_rms_error": float(np.sqrt(np.mean(paths[0] ** 2))), "path_bar_median": float(np.median(paths[1])),
        "within_95_percent": float(np.mean(np.abs((np.asarray(f - truth)) / bars) < 1.96)),
        "coverage_95": float(np.mean(np.abs(scores) < 1.96)) if len(scores) else None,
        "coverage_95_identified": float(np.mean(np.abs(scores[:, identified]) < 1.96)) if len(scores) else None,
        "score_rms": float(np.sqrt(np.mean(scores**2))) if len(scores) else None,
        "chi_square": found.chi_square,
        "chi_square_expected": data.z.size - steps - count - data.z.shape[1], "last_step": found.last_step,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs the study; 1 if the fit has not settled."""
    parser = argparse.ArgumentParser(description="Line impedances and phase labels from smart-meter data")
    parser.add_argument("--feeder", choices=("european_lv", "ieee13"), default="european_lv")
    parser.add_argument("--steps", type=int, default=96, help="half-hours of readings")
    parser.add_argument("--scenarios", type=int, default=100, help="noise draws for the coverage of the error bars")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("line_estimation_out"))
    options = parser.parse_args(argv)
    if options.scenarios < 1 or options.steps < 12:
        parser.error("--scenarios must be at least 1, --steps at least 12: fewer readings tell nothing")
    console = Console(highlight=False, width=110, force_jupyter=False)
    errors = Console(stderr=True, highlight=False, force_jupyter=False)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    work = study(join_series(gridjax.feeders.load(options.feeder)))
    result = run(Model(work), options.steps, options.scenarios, options.seed, options.out, errors)
    result |= provenance(options, "line_estimation", started)
    (options.out / "line_estimation.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    line_table(console, result)
    return 0 if result["last_step"] < 0.01 else 1


# %%
if __name__ == "__main__":
    sys.exit(main())
