# %% [markdown]
# # Three-phase state estimation with bad-data detection
#
# A distribution feeder has few meters and many loads. What is known of a load is a *pseudo-measurement*: its usual
# power, off by 30 % or so. Weighted least squares (F. C. Schweppe and J. Wildes, 1970) joins these with the few real
# readings: voltage magnitudes, and power flows at the head of the feeder and on some lines.
#
# The state is what the power flow is a function of, $x = (P_1 \ldots P_L, Q_1 \ldots Q_L, E)$: the loads' kW and
# kvar at rated voltage, and the source's voltage. Then $h(x)$ is exact (`gridjax.solve` and `gridjax.powers`), every
# estimate satisfies the network's equations, and nothing is linearised but the step:
#
# $$ \min_x J(x) = \sum_i \left(\frac{z_i - h_i(x)}{\sigma_i}\right)^2, \qquad
#    x \leftarrow x + (H^T W H)^{-1} H^T W\,(z - h(x)), \qquad H = \frac{\partial h}{\partial x}, \quad W = R^{-1} $$
#
# with $R = \mathrm{diag}(\sigma_i^2)$. $H$ comes from `jax.jacrev` through the solver: one adjoint solution for each
# meter.
#
# **Bad data** (A. Monticelli, 1999, ch. 7 and 8; A. Abur and A. G. Exposito, 2004, ch. 5). Without gross errors
# $J(\hat x)$ follows $\chi^2$ with (measurements - states) degrees of freedom, and each normalised residual
# $r_i^N = |z_i - h_i(\hat x)| / \sqrt{\Omega_{ii}}$, $\Omega = R - H (H^T W H)^{-1} H^T$, is a standard normal
# number. The meter with the largest one is removed if it is beyond the threshold, and the state is estimated anew.
# A meter with $\Omega_{ii} \approx 0$ is *critical*: its error cannot be seen, whatever its size.
#
#     python examples/state_estimation.py --feeder ieee123 --scenarios 200 --seed 0 --out docs/examples

# %%
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import flax.struct
import jax.numpy as jnp
import numpy as np
from estimation.bad_data import Trials, summary_of_bad, summary_of_clean, threshold
from estimation.reports import provenance, state_picture, state_table
from rich.console import Console
from rich.progress import track

import gridjax

PSEUDO = 0.30  # standard deviation of a load's usual power, of its rated kW and kvar each
SOURCE = 0.01  # spread of the source's voltage, pu; the estimator is not told
VOLTAGE = 0.003  # a voltage meter's standard deviation, pu
FLOW = 0.01  # a flow meter's, of the flow's nominal kVA
ITERATIONS = 4
SIZES = (5.0, 10.0, 20.0)  # gross errors in standard deviations of the meter
CRITICAL = 1e-3  # a meter with less of its variance left in the residual is not tested


class Placement(NamedTuple):
    """Where the meters are: kW and kvar a phase into the first terminal of lines, voltages to ground at buses."""

    lines: tuple[str, ...]
    buses: tuple[str, ...]


METERS = {
    "ieee13": Placement(("650632", "632670", "632633", "692675"), ("rg60", "634", "671", "675", "611", "652")),
    "ieee123": Placement(
        ("l115", "l13", "l116", "l114", "l117", "l67", "l68", "l118"),
        ("149", "8", "18", "29", "49", "54", "57", "66", "67", "76", "83", "93", "95", "101", "108", "114"),
    ),
}

# %% [markdown]
# ## Meters and measurement function
#
# `Meters` holds what $h(x)$ needs. Rows are ordered: pseudo-measurements of kW, of kvar, then voltages, then flows in
# kW and in kvar.


# %%
@flax.struct.dataclass
class Meters:
    """What is measured, with which standard deviations, and the usual values of the loads.

    Attributes:
      nodes: (voltages,) rows of `PowerFlow.v`.
      lines, phases: (flows,) rows of the table of lines, and conductors of their first terminals.
      usual: (2 loads,) usual kW, then kvar, all positive when consumed.
      sigma: (rows,) kW, kvar, pu, kW, kvar in the order of the rows.
    """

    nodes: jax.Array
    lines: jax.Array
    phases: jax.Array
    usual: jax.Array
    sigma: jax.Array


def place_meters(feeder: gridjax.Feeder, grid: gridjax.Grid) -> tuple[Meters, list[str]]:
    """The feeder's meters and the names of all rows.

    Raises:
      ValueError: no meters are placed on this feeder, or it lacks the line or bus of one.
    """
    if feeder.name not in METERS:
        raise ValueError(f"no meters are placed on feeder {feeder.name!r}: choose one of {', '.join(METERS)}")
    placement = METERS[feeder.name]
    rows = {line.name: i for i, line in enumerate(feeder.lines)}
    nodes_of = {bus.name: bus.nodes for bus in feeder.buses}
    for kind, names, known in (("line", placement.lines, rows), ("bus", placement.buses, nodes_of)):
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(f"feeder {feeder.name!r} has no {kind} {missing[0]!r}: correct METERS[{feeder.name!r}]")
    voltages = [f"{bus}.{n}" for bus in placement.buses for n in nodes_of[bus]]
    flows = [(rows[n], k, f"{n}, conductor {k + 1}") for n in placement.lines for k in range(_conductors(feeder, n))]
    point = grid.nominal
    usual = jnp.concatenate([point.load_kw, point.load_kvar])
    meters = Meters(
        nodes=jnp.array([feeder.node_names.index(name) for name in voltages]),
        lines=jnp.array([f[0] for f in flows]),
        phases=jnp.array([f[1] for f in flows]),
        usual=usual,
        sigma=jnp.zeros(len(usual) + len(voltages) + 2 * len(flows)),
    )
    nominal = metered(grid, meters, jnp.append(usual, point.source_pu[0]))[len(voltages) :].reshape(2, -1)
    kva = jnp.sqrt(jnp.sum(nominal**2, axis=0))
    sigma = [PSEUDO * jnp.abs(usual), jnp.full(len(voltages), VOLTAGE), jnp.tile(FLOW * kva, 2)]
    names = [f"{q} of load {x.name}" for q in ("kW", "kvar") for x in feeder.loads]
    names += [f"voltage {name}" for name in voltages]
    names += [f"{q} into line {f[2]}" for q in ("kW", "kvar") for f in flows]
    return dataclasses.replace(meters, sigma=jnp.concatenate(sigma)), names


def _conductors(feeder: gridjax.Feeder, line: str) -> int:
    return next(x.bus1.count(".") for x in feeder.lines if x.name == line)


def operating_point(grid: gridjax.Grid, x: jax.Array) -> gridjax.OperatingPoint:
    """The point at a state (2 loads + 1,): kW, kvar, source in pu. Further sources keep their voltage."""
    loads = grid.nominal.load_kw.shape[0]
    source = grid.nominal.source_pu.at[0].set(x[-1])
    return dataclasses.replace(grid.nominal, load_kw=x[:loads], load_kvar=x[loads:-1], source_pu=source)


@jax.jit
def node_voltages(grid: gridjax.Grid, x: jax.Array) -> jax.Array:
    """Voltage magnitudes in pu, (nodes,); not a number where the power flow has not converged, likewise below."""
    flow = gridjax.solve(grid, operating_point(grid, x))
    return jnp.where(flow.converged, jnp.abs(flow.v), jnp.nan)


@jax.jit
def metered(grid: gridjax.Grid, meters: Meters, x: jax.Array) -> jax.Array:
    """The real meters' part of h(x): voltages in pu, then kW, then kvar of the flows."""
    point = operating_point(grid, x)
    flow = gridjax.solve(grid, point)
    kva = gridjax.powers(grid, point, flow)["lines"][meters.lines, 0, meters.phases]
    return jnp.where(flow.converged, jnp.concatenate([jnp.abs(flow.v)[meters.nodes], kva.real, kva.imag]), jnp.nan)


# %% [markdown]
# ## The estimator
#
# Gauss-Newton in whitened rows, $\tilde H = R^{-1/2} H$, by the orthogonal method: with $\tilde H = QU$ the step is
# $U^{-1} Q^T \tilde r$, and $\Omega$ in whitened rows is $1 - QQ^T$. A row that is not in use has the weight 0.


# %%
class Estimate(NamedTuple):
    """A state and what the Gauss-Newton step there found.

    Attributes:
      x: (states,) kW, kvar, source in pu.
      objective: J.
      normalised: (rows,) signed residuals over their standard deviations; 0 where critical or not in use.
      left: (rows,) share of the meter's variance that is left in the residual.
      step: (states,) the step that would come next.
      last_step: its largest entry in standard deviations of the pseudo-measurements (of 0.01 pu for the source).
      factor: (states, states) U of the whitened Jacobian: the state's covariance is (U^T U)^-1.
    """

    x: jax.Array
    objective: jax.Array
    normalised: jax.Array
    left: jax.Array
    step: jax.Array
    last_step: jax.Array
    factor: jax.Array


def whitened(grid: gridjax.Grid, meters: Meters, z: jax.Array, use: jax.Array, x: jax.Array):
    """Whitened residuals (rows,) and Jacobian (rows, states) at a state."""
    h, pull = jax.vjp(lambda y: metered(grid, meters, y), x)
    (slopes,) = jax.vmap(pull)(jnp.eye(h.shape[0]))
    jacobian = jnp.concatenate([jnp.eye(x.shape[0] - 1, x.shape[0]), slopes])
    weight = use / meters.sigma
    return weight * (z - jnp.append(x[:-1], h)), weight[:, None] * jacobian


def estimate(grid: gridjax.Grid, meters: Meters, z: jax.Array, use: jax.Array) -> Estimate:
    """Weighted least squares from the usual loads and 1 pu.

    Args:
      grid: the feeder.
      meters: what is measured.
      z: (rows,) the readings.
      use: (rows,) 1.0 for rows to use, 0.0 for those removed.
    """
    scale = jnp.append(meters.sigma[: meters.usual.shape[0]], SOURCE)

    def step(before: Estimate, _):
        x = before.x + before.step
        residual, jacobian = whitened(grid, meters, z, use, x)
        q, u = jnp.linalg.qr(jacobian * scale[None])
        left = use - jnp.sum(q**2, axis=1)
        tested = left > CRITICAL
        normalised = jnp.where(tested, residual / jnp.sqrt(jnp.where(tested, left, 1.0)), 0.0)
        move = jax.scipy.linalg.solve_triangular(u, q.T @ residual)
        return Estimate(
            x, jnp.sum(residual**2), normalised, left, scale * move, jnp.max(jnp.abs(move)), u / scale[None]
        ), None

    states, rows = scale.shape[0], z.shape[0]
    zero, none = jnp.zeros(()), jnp.zeros(rows)
    start = Estimate(
        jnp.append(meters.usual, 1.0), zero, none, none, jnp.zeros(states), zero, jnp.zeros((states, states))
    )
    return jax.lax.scan(step, start, None, length=ITERATIONS)[0]


# One compilation serves all: single cases are batches of equal readings.
estimate_many = jax.jit(jax.vmap(estimate, in_axes=(None, None, 0, 0)))


# %% [markdown]
# ## The two tests


# %%
def real_rows(meters: Meters) -> np.ndarray:
    """True for real meters. A load's pseudo-measurement is never removed: nothing would be left of it."""
    return np.arange(meters.sigma.shape[0]) >= meters.usual.shape[0]


def estimate_one(grid: gridjax.Grid, meters: Meters, z: jax.Array, use: jax.Array, batch: int) -> Estimate:
    """One estimate by the function that was compiled for batches of that size."""
    many = estimate_many(grid, meters, *(jnp.broadcast_to(a, (batch, *a.shape)) for a in (z, use)))
    return jax.tree.map(lambda a: a[0], many)


def remove_bad_data(
    grid: gridjax.Grid, meters: Meters, z: jax.Array, batch: int = 1, most: int = 5
) -> tuple[list[Estimate], list[int]]:
    """Removes the meter with the largest normalised residual until none is beyond the threshold.

    Returns:
      The estimates, the last one with nothing more to remove, and the rows removed in order.

    Raises:
      ValueError: more than `most` meters would go: the model or the standard deviations are wrong.
    """
    use, removed, real, estimates = np.ones(len(z)), [], real_rows(meters), []
    limit = threshold(int(real.sum()))
    while True:
        estimates.append(estimate_one(grid, meters, z, jnp.asarray(use), batch))
        size = np.where(real, np.abs(estimates[-1].normalised), 0.0)
        worst = int(size.argmax())
        if size[worst] <= limit:
            return estimates, removed
        if len(removed) == most:
            raise ValueError(
                f"{most} meters removed and row {worst} is still {size[worst]:.1f}: check model and sigmas"
            )
        removed.append(worst)
        use[worst] = 0.0


# %% [markdown]
# ## Known truth, seeded noise
#
# In each draw the loads are off their usual values by 30 % (a normal number for each kW and kvar), the source is off
# by 1 %, and each meter has its own error. A gross error is added to one meter that is not critical.


# %%
@jax.jit
def draw(key: jax.Array, grid: gridjax.Grid, meters: Meters) -> tuple[jax.Array, jax.Array]:
    """A true state (states,) and the readings (rows,) of it."""
    load_key, source_key, meter_key = jax.random.split(key, 3)
    usual, count = meters.usual, meters.usual.shape[0]
    loads = usual + meters.sigma[:count] * jax.random.normal(load_key, usual.shape)
    x = jnp.append(loads, 1 + SOURCE * jax.random.normal(source_key))
    noise = meters.sigma[count:] * jax.random.normal(meter_key, (meters.sigma.shape[0] - count,))
    return x, jnp.append(usual, metered(grid, meters, x) + noise)


draw_many = jax.jit(jax.vmap(draw, in_axes=(0, None, None)))
node_voltages_many = jax.jit(jax.vmap(node_voltages, in_axes=(None, 0)))


def chunk_of_trials(key: jax.Array, grid: gridjax.Grid, meters: Meters, size: float, chunk: int) -> Trials:
    """Draws, estimates, spoils one meter each, estimates, removes the suspects and estimates again."""
    draw_key, row_key, sign_key = jax.random.split(key, 3)
    truth, z = draw_many(jax.random.split(draw_key, chunk), grid, meters)
    ones, at, real = jnp.ones_like(z), jnp.arange(chunk), jnp.asarray(real_rows(meters))
    clean = estimate_many(grid, meters, z, ones)
    row = jax.random.categorical(row_key, jnp.where(real[None] & (clean.left > CRITICAL), 0.0, -jnp.inf))
    bad_z = z.at[at, row].add(meters.sigma[row] * size * jax.random.rademacher(sign_key, (chunk,), z.dtype))
    bad = estimate_many(grid, meters, bad_z, ones)
    residuals = jnp.where(real[None], jnp.abs(jnp.stack([clean.normalised, bad.normalised])), 0.0)
    found = jnp.argmax(residuals[1], axis=1)
    beyond = residuals[1, at, found] > threshold(int(real_rows(meters).sum()))
    mended = estimate_many(grid, meters, bad_z, ones.at[at, found].set(jnp.where(beyond, 0.0, 1.0)))
    v = node_voltages_many(grid, truth)
    usual = jnp.broadcast_to(jnp.append(meters.usual, 1.0), truth.shape)
    states = (usual, clean.x, bad.x, mended.x)
    rms = [jnp.sqrt(jnp.mean((node_voltages_many(grid, x) - v) ** 2, axis=1)) for x in states]
    last_step = jnp.max(jnp.stack([clean.last_step, bad.last_step, mended.last_step]), axis=0)
    shift = size * jnp.sqrt(clean.left[at, row])
    out = (clean.objective, jnp.stack(rms, 1), residuals.max(2).T, row, found, bad.objective, shift, last_step)
    return Trials(*(np.asarray(a) for a in out))


def trials(
    key: jax.Array, grid: gridjax.Grid, meters: Meters, count: int, size: float, chunk: int, console: Console
) -> Trials:
    """`count` trials in vmapped chunks."""
    starts = track(range(0, count, chunk), f"gross errors of {size:g} sigma", console=console, transient=True)
    parts = [chunk_of_trials(jax.random.fold_in(key, i), grid, meters, size, chunk) for i in starts]
    return Trials(*(np.concatenate(a)[:count] for a in zip(*parts, strict=True)))


# %% [markdown]
# ## What comes out


# %%
@jax.jit
def voltage_slopes(grid: gridjax.Grid, x: jax.Array, directions: jax.Array) -> jax.Array:
    """Derivatives of the nodes' voltages at x along directions (directions, states): (directions, nodes)."""
    return jax.vmap(lambda d: jax.jvp(lambda y: node_voltages(grid, y), (x,), (d,))[1])(directions)


def one_case(key: jax.Array, grid: gridjax.Grid, meters: Meters, names: list[str], batch: int) -> dict[str, Any]:
    """One draw with two gross errors, for the picture: voltages with their error bars, and what is removed."""
    # One scenario is a batch of equal ones, as in `estimate_one`: nothing is compiled for it alone.
    truth, z = (a[0] for a in draw_many(jnp.broadcast_to(key, (batch,)), grid, meters))
    loads, voltages = meters.usual.shape[0], meters.nodes.shape[0]
    # A voltage meter, and the flow meter that the others know most of: an error in one alone in its place is not seen.
    left = estimate_one(grid, meters, z, jnp.ones_like(z), batch).left
    planted = [loads + voltages // 2, loads + voltages + int(jnp.argmax(left[loads + voltages :]))]
    spoilt = z.at[jnp.array(planted)].add(jnp.array([12.0, -25.0]) * meters.sigma[jnp.array(planted)])
    estimates, removed = remove_bad_data(grid, meters, spoilt, batch)
    first, last = estimates[0], estimates[-1]
    # Column by column: the voltages' covariance is S (U^T U)^-1 S^T, of which the diagonal is wanted.
    root = voltage_slopes(grid, last.x, jnp.linalg.inv(last.factor).T)
    states = {"truth": truth, "spoilt": first.x, "estimate": last.x, "usual": jnp.append(meters.usual, 1.0)}
    every = jnp.stack(list(states.values()))[jnp.arange(max(batch, len(states))) % len(states)]
    v = dict(zip(states, np.asarray(node_voltages_many(grid, every)), strict=False))
    return {
        "planted": [names[i] for i in planted],
        "removed": [names[i] for i in removed],
        "v": v,
        "std": np.asarray(jnp.sqrt(jnp.sum(root**2, axis=0))),
        "normalised": np.asarray(first.normalised),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the study; 1 if an estimate has not settled or a planted error of the case was not found."""
    parser = argparse.ArgumentParser(description="Three-phase state estimation with bad-data detection")
    parser.add_argument("--feeder", choices=sorted(METERS), default="ieee123")
    parser.add_argument("--scenarios", type=int, default=200, help="draws for each size of the gross error")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("state_estimation_out"))
    options = parser.parse_args(argv)
    if options.scenarios < 2:
        parser.error("--scenarios must be at least 2: a spread is estimated")
    console = Console(highlight=False, width=110, force_jupyter=False)
    errors = Console(stderr=True, highlight=False, force_jupyter=False)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with errors.status("compiling the feeder"):
        feeder = gridjax.feeders.load(options.feeder)
        grid = gridjax.compile(feeder)
        meters, names = place_meters(feeder, grid)
    count = int(real_rows(meters).sum())
    first_flow = len(meters.usual) + len(meters.nodes)
    chunk = min(options.scenarios, 25)
    freedom = count - 1  # rows less states: pseudo-measurements and meters, less as many loads and the source
    case_key, draw_key = jax.random.split(jax.random.key(options.seed))
    with errors.status("one case"):
        case = one_case(case_key, grid, meters, names, chunk)
    runs = {
        size: trials(jax.random.fold_in(draw_key, i), grid, meters, options.scenarios, size, chunk, errors)
        for i, size in enumerate(SIZES)
    }
    clean = jax.tree.map(lambda *a: np.concatenate(a), *runs.values())
    tables = {size: summary_of_bad(run, first_flow, freedom, count) for size, run in runs.items()}
    state_picture(options.out / "state_estimation.png", feeder, case, clean.objective, freedom, tables)
    result = {
        "feeder": feeder.name,
        "states": len(meters.usual) + 1,
        "pseudo": len(meters.usual),
        "meters": count,
        "clean": summary_of_clean(clean, freedom, count),
        "bad": {f"{size:g}": table for size, table in tables.items()},
        "case": {k: case[k] for k in ("planted", "removed")},
        "seed": options.seed,
        **provenance(options, "state_estimation", started),
    }
    (options.out / "state_estimation.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    state_table(console, result)
    settled = result["clean"]["largest_last_step"] < 1e-3
    return 0 if settled and set(case["planted"]) <= set(case["removed"]) else 1


# %%
if __name__ == "__main__":
    sys.exit(main())
