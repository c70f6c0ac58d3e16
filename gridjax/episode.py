"""`write_episode`: an episode of an environment as one HTML file that needs nothing else.

What an observation is called says what it is: "voltage 671.2" is a node's magnitude in per unit, "tap reg1" a turns
ratio, "capacitor c1" 0 or 1, "state of charge b1" a share. So the page works for any environment, with the panels that
there is something for. Everything is what came of a step: the first step shows the devices after the first action.

A step whose power flow was not solved shows as such: its figures are not numbers, and the voltages before it are not
drawn in its place.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from gridjax import svg, timelines
from gridjax.drawing import RANGE_A, branches, bus_minimum, printable
from gridjax.env.environment import Environment, Transitions
from gridjax.feeder import Feeder
from gridjax.page import filled, json_text, number, scale, style
from gridjax.placement import place

_TEMPLATE = Path(__file__).with_name("episode.html")
_LINES = {
    "tap": "Taps, turns ratio", "state of charge": "State of charge", "frequency": "Frequency, Hz from nominal",
    "served": "Load served, share",
}  # fmt: skip
_ON = {
    "capacitor": "Capacitors in service", "in service": "Sources in service", "closed": "Switches closed",
    "energised": "Sections energised", "fault": "Faults",
}  # fmt: skip
_WORST = 3
_MOST_DEVICES = 400  # of which the page keeps every value


def write_episode(
    path: str | Path, env: Environment, params: Any, seen: Transitions, feeder: Feeder | None = None, *, title: str = ""
) -> None:
    """Writes an episode as a self-contained page.

    It has the voltages with their limits, taps, capacitors, states of charge, reward and costs over time, each step's
    figures, and the one-line diagram coloured by voltage, with a slider for the time.

    Args:
      path: the HTML file to write.
      env: the environment.
      params: its parameters; their `low` and `high`, where there are any, are the voltage limits.
      seen: one episode's transitions, (steps, ...); of a rollout that goes on after its end only the first is shown.
      feeder: the environment's, for the diagram; None leaves it out.
      title: of the page; "" is the environment's kind.

    Raises:
      ValueError: transitions of many episodes side by side, of another environment, or another feeder.
    """
    seen = _one(env, seen)
    solved = np.asarray(seen.info.get("solved", np.ones(len(seen.reward), bool)))
    table = np.asarray(seen.next_observation, float)
    by_kind = _kinds(env.observation_names, table)
    # A node that is cut off has no voltage: it is left out, as one that is not known.
    voltages = {name: np.where(v > 0, v, np.nan) for name, v in by_kind.pop("voltage", {}).items()}
    limits = _limits(params)
    data: dict[str, Any] = {
        "steps": len(solved),
        "x": [timelines.LEFT, timelines.width(len(solved))],
        "solved": solved.tolist(),
        "figures": _figures(env, seen),
        "worst": _worst(voltages, solved),
        "devices": _devices(by_kind),
    }
    diagram, data["diagram"], note = _diagram(feeder, voltages, by_kind.get("closed", {}), solved)
    panels = [_voltage_chart(voltages, solved, limits)] if voltages else []
    panels += _panels(env, seen, by_kind, solved)
    failed = int((~solved).sum())
    name = title or type(env.base).__name__
    parts = {
        "title": html.escape(printable(name)),
        "style": style(len(feeder.buses) if feeder else 0),
        "banner": _BANNER.format(failed, len(solved)) if failed else "",
        "summary": html.escape(_summary(env, seen)),
        "last": str(len(solved) - 1),
        "diagram": diagram,
        "note": html.escape(note),
        "panels": "".join(panels),
        "data": json_text(data),
    }
    Path(path).write_text(filled(_TEMPLATE, parts), encoding="utf-8")


def _panels(env: Environment, seen: Any, by_kind: dict[str, dict[str, np.ndarray]], solved: np.ndarray) -> list[str]:
    """The devices' timelines, the reward's and the costs'."""
    out = [
        timelines.chart(_id(kind), text, by_kind[kind], solved, held=kind == "tap", height=140)
        for kind, text in _LINES.items()
        if kind in by_kind
    ]
    out += [timelines.switches(_id(kind), text, by_kind[kind], solved) for kind, text in _ON.items() if kind in by_kind]
    out.append(timelines.chart("reward", "Reward of each step", {"reward": seen.reward}, solved, height=120))
    return out + [
        timelines.chart(f"cost{k}", f"Cost: {name}", {name: seen.cost[:, k]}, solved, height=90)
        for k, name in enumerate(env.cost_names[:-1])
    ]


_BANNER = '<p class="banner" role="alert">The power flow of {} of {} steps was not solved: they have no figures.</p>'


def _one(env: Environment, seen: Transitions) -> Any:
    """The episode's rows, NumPy arrays, up to its end."""
    shape = np.shape(seen.next_observation)
    if len(shape) == 3 and shape[1] == 1:
        return _one(env, _mapped(lambda a: np.asarray(a)[:, 0], seen))
    if len(shape) != 2 or not shape[0]:
        raise ValueError(
            f"the transitions' observations have the shape {shape}: take one episode, of a batch for instance "
            "jax.tree.map(lambda a: a[:, 0], seen)"
        )
    if shape[1] != env.observation_size or np.shape(seen.cost)[1] != len(env.cost_names):
        raise ValueError(f"the transitions are not of this environment, which has {env.observation_size} observations")
    ends = np.flatnonzero(np.asarray(seen.terminated) | np.asarray(seen.truncated))
    stop = ends[0] + 1 if len(ends) else shape[0]
    return _mapped(lambda a: np.asarray(a)[:stop], seen)


def _mapped(function: Any, seen: Transitions) -> Any:
    import jax

    return jax.tree.map(function, seen)


def _kinds(names: tuple[str, ...], table: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The observations by kind and device, (steps,) each; kinds without devices are devices of the kind "" ."""
    known = ("voltage", *_LINES, *_ON)
    out: dict[str, dict[str, np.ndarray]] = {}
    for k, name in enumerate(names):
        kind = next((kind for kind in known if name == kind or name.startswith(f"{kind} ")), "")
        out.setdefault(kind, {})[name.removeprefix(kind).strip() or name] = table[:, k]
    return out


def _limits(params: Any) -> tuple[float, float]:
    low, high = (
        np.asarray(getattr(params, side, default)) for side, default in zip(("low", "high"), RANGE_A, strict=True)
    )
    return float(low.max()), float(high.min())


def _id(kind: str) -> str:
    return kind.replace(" ", "-")


def _voltage_chart(voltages: dict[str, np.ndarray], solved: np.ndarray, limits: tuple[float, float]) -> str:
    """The highest, mean and lowest voltage, and the nodes that are the worst in the episode."""
    known = np.where(solved[None], np.stack(list(voltages.values())), np.nan)
    known = np.where(np.isfinite(known), known, np.nan)
    if np.isnan(known).all():
        return ""
    series = timelines.summary(known)
    names = list(voltages)
    for label, k in (("highest", np.nanargmax(known)), ("lowest", np.nanargmin(known))):
        row = int(k) // len(solved)
        series[f"{names[row]}, where the {label} is"] = known[row]
    return timelines.chart("voltage", f"Voltages of {len(names)} nodes, pu", series, solved, band=limits, height=250)


def _figures(env: Environment, seen: Any) -> dict[str, Any]:
    """What the table has for each step."""
    columns = {"reward": seen.reward, "return so far": np.cumsum(np.asarray(seen.reward, float))}
    columns |= {name: np.asarray(seen.cost)[:, k] for k, name in enumerate(env.cost_names)}
    columns |= {name.replace("_", " "): values for name, values in seen.info.items() if name != "solved"}
    flat = {name: np.asarray(values, float) for name, values in columns.items() if np.ndim(values) == 1}
    return {"names": list(flat), "values": [[number(x, 6) for x in values] for values in flat.values()]}


def _worst(voltages: dict[str, np.ndarray], solved: np.ndarray) -> list[Any]:
    """The lowest and the highest nodes of each step: [[name, pu], ...] twice."""
    if not voltages:
        return []
    names, table = list(voltages), np.stack(list(voltages.values()))
    out = []
    for k in range(len(solved)):
        row = np.where(np.isfinite(table[:, k]), table[:, k], np.nan)
        order = np.argsort(row)[: int(np.isfinite(row).sum())] if solved[k] else np.zeros(0, int)
        ends = (order[:_WORST], order[::-1][:_WORST])
        out.append([[[names[i], number(float(row[i]), 5)] for i in some] for some in ends])
    return out


def _devices(by_kind: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Every device's value in each step."""
    flat = {f"{kind} {name}".strip(): values for kind, group in by_kind.items() for name, values in group.items()}
    if len(flat) > _MOST_DEVICES:
        return {"names": [], "values": []}
    return {"names": list(flat), "values": [[number(x, 5) for x in values] for values in flat.values()]}


def _diagram(
    feeder: Feeder | None, voltages: dict[str, np.ndarray], switched: dict[str, np.ndarray], solved: np.ndarray
) -> tuple[str, dict[str, Any] | None, str]:
    """The one-line diagram with its slider's data, and a note on the places; nothing without a feeder or voltages."""
    if feeder is None or not voltages:
        return "", None, ""
    if set(voltages) != set(feeder.node_names):
        raise ValueError(
            f"the environment's nodes are not those of {feeder.name!r}: give the feeder that it was made from"
        )
    table = np.stack([voltages[name] for name in feeder.node_names], axis=1)
    lowest = np.stack([bus_minimum(feeder, v) for v in table])
    lowest = np.where(solved[:, None], lowest, np.nan)
    classes, low, high = svg.bins(lowest)
    xy, note = place(feeder)
    at, height = svg.fit(xy)
    edges = branches(feeder)
    thick = np.full(len(edges), 3.0 if len(xy) <= 1000 else 1.0)
    drawing = svg.diagram(feeder, edges, at, height, lowest[0], thick, False)
    found = {
        "names": [bus.name for bus in feeder.buses],
        "classes": classes.tolist(),
        "pu": [[number(x, 4) for x in row] for row in lowest],
        "ends": [[edge.ends[0].bus, edge.ends[1].bus] for edge in edges],
        "closed": [
            (switched[edge.name] > 0.5).tolist() if edge.name in switched else [edge.closed] * len(solved)
            for edge in edges
        ],
    }
    bar = f'<div class="scale"><span>lowest phase voltage:</span>{scale(low, high)}</div>'
    text = f"{note[:1].upper()}{note[1:]}." if note else ""
    return f"<h2>One-line diagram</h2>{drawing}{bar}", found, text


def _summary(env: Environment, seen: Any) -> str:
    end = (
        "terminated"
        if bool(seen.terminated[-1])
        else "ran to its time limit"
        if bool(seen.truncated[-1])
        else "goes on"
    )
    total = ", ".join(
        f"{name}: {np.asarray(seen.cost, float)[:, k].sum():.5g}" for k, name in enumerate(env.cost_names) if name
    )
    gained = np.asarray(seen.reward, float).sum()
    return f"{len(seen.reward)} steps, return {gained:.5g}; the episode {end}. In all {total}."
