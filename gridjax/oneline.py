"""`oneline`: the feeder's diagram, coloured by voltage.

A branch has the colour of the lowest phase voltage at its ends; its width grows with its loading, or with its current
where the feeder rates nothing. Symbols keep their size whatever the feeder's extent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gridjax.drawing import (
    VOLTAGE_COLOURS,
    Branch,
    BranchValues,
    branch_symbols,
    branch_values,
    branches,
    bus_devices,
    bus_minimum,
    magnitudes,
    printable,
    stamp,
)
from gridjax.feeder import Feeder
from gridjax.grid import Grid, OperatingPoint
from gridjax.placement import place
from gridjax.powerflow.solve import PowerFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELLED = 150  # buses up to which each has its name
_DARK = "#1a1a1a"


def oneline(
    feeder: Feeder, grid: Grid, point: OperatingPoint, flow: PowerFlow, path: str | Path | None = None
) -> Figure:
    """Draws the one-line diagram of a solved feeder.

    Args:
      feeder: the tables that `grid` was compiled from; buses without coordinates get a computed place, and the
        title says so.
      grid: the compiled feeder.
      point: what was solved.
      flow: one scenario's power flow. One that has not converged is stamped so.
      path: where to save the picture, in the format of its suffix; None does not save.

    Returns:
      The figure. Its first axes' first `LineCollection` has the closed branches, with the voltages as its array.

    Raises:
      ValueError: the flow is of many scenarios or of another feeder.
    """
    from matplotlib.figure import Figure

    v = bus_minimum(feeder, magnitudes(feeder, flow))
    xy, note = place(feeder)
    edges = branches(feeder)
    figure = Figure(figsize=_size(xy), layout="constrained")
    axes = figure.subplots()
    widths, meaning = branch_widths(branch_values(grid, point, flow, edges), len(xy))
    _draw_branches(figure, axes, xy, edges, v, widths)
    _draw_symbols(axes, feeder, edges, xy)
    _name_buses(axes, feeder, xy)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    axes.set_axis_off()
    title = f"{printable(feeder.name)}: width by {meaning}" + (f"; {note}" if note else "")
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    if not bool(flow.converged):
        stamp(figure, axes)
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure


def branch_widths(values: BranchValues, buses: int) -> tuple[np.ndarray, str]:
    """Line widths in points, (branches,), and what they stand for."""
    rated = np.isfinite(values.loading)
    thin, thick = (0.35, 2.6) if buses > 1000 else (0.9, 5.0)
    if rated.any():
        measure, meaning = np.where(rated, values.loading, 0.0), "loading"
    else:
        amps = values.amps.max(axis=1, initial=0.0)
        measure, meaning = amps / max(float(np.max(amps, initial=0.0, where=np.isfinite(amps))), 1e-12), "current"
    measure = np.clip(np.nan_to_num(measure, nan=0.0, posinf=0.0), 0.0, 1.2)
    return thin + (thick - thin) * measure, meaning


def _size(xy: np.ndarray) -> tuple[float, float]:
    width, height = np.maximum(np.ptp(xy, axis=0), 1e-9)
    ratio = float(np.clip(height / width, 0.4, 0.85))
    return 11.0, 9.5 * ratio + 0.9


def _draw_branches(
    figure: Figure, axes: Axes, xy: np.ndarray, edges: list[Branch], v: np.ndarray, widths: np.ndarray
) -> None:
    """Closed branches in the colour of their voltage, open ones dashed, and the colour bar."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    ends = np.array([[edge.ends[0].bus, edge.ends[1].bus] for edge in edges], int).reshape(-1, 2)
    lowest = np.fmin(v[ends[:, 0]], v[ends[:, 1]])
    closed = np.array([edge.closed for edge in edges], bool)
    finite = v[np.isfinite(v)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.95, 1.05)
    if high - low < 1e-4:
        low, high = low - 5e-5, high + 5e-5
    colours = LinearSegmentedColormap.from_list("voltage", VOLTAGE_COLOURS).with_extremes(bad="#bbbbbb")
    live = LineCollection(
        list(xy[ends[closed]]),
        cmap=colours,
        norm=Normalize(low, high),
        linewidths=widths[closed],
        capstyle="round",
        zorder=2,
    )
    live.set_array(np.ma.masked_invalid(lowest[closed]))
    axes.add_collection(live)
    if not closed.all():
        axes.add_collection(
            LineCollection(list(xy[ends[~closed]]), colors="#999999", linewidths=0.8, linestyles="dotted", zorder=1)
        )
    axes.autoscale_view()
    axes.update_datalim(xy)
    bar = figure.colorbar(live, ax=axes, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label("lowest phase voltage of the ends (pu)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _markers():
    """Marker paths: a transformer's two circles, a capacitor's two plates."""
    from matplotlib.path import Path as Outline

    circle = Outline.unit_circle()
    two = [Outline(np.add(circle.vertices, (shift, 0.0)), circle.codes) for shift in (-0.6, 0.6)]
    plates = Outline(
        [(-1, 0.3), (1, 0.3), (-1, -0.3), (1, -0.3), (0, 0.3), (0, 1.2), (0, -0.3), (0, -1.2)],
        [Outline.MOVETO, Outline.LINETO] * 4,
    )
    return {"transformer": Outline.make_compound_path(*two), "capacitor": plates}


def _draw_symbols(axes: Axes, feeder: Feeder, edges: list[Branch], xy: np.ndarray) -> None:
    """Symbols of constant size, each kind one collection with its label."""
    shapes = _markers()
    many = len(xy) > 1000
    k = 0.6 if many else 1.0
    styles = {
        "service transformer": {"marker": "o", "s": 2.0, "facecolors": "#555555", "edgecolors": "none", "zorder": 3},
        "transformer": {"marker": shapes["transformer"], "s": 190 * k, "facecolors": "none", "edgecolors": _DARK},
        "regulator": {"marker": "D", "s": 55 * k, "facecolors": "#ffd92f", "edgecolors": _DARK},
        "closed switch": {"marker": "s", "s": 26 * k, "facecolors": _DARK, "edgecolors": _DARK},
        "open switch": {"marker": "s", "s": 26 * k, "facecolors": "white", "edgecolors": _DARK},
        "capacitor": {"marker": shapes["capacitor"], "s": 130 * k, "facecolors": "none", "edgecolors": "#c2185b"},
        "source": {"marker": "*", "s": 240 * k, "facecolors": "#e41a1c", "edgecolors": _DARK},
    }
    at = {name: [_middle(edges[b], xy) for b in rows] for name, rows in branch_symbols(feeder, edges).items()}
    at |= {name: [xy[i] for i in rows] for name, rows in bus_devices(feeder).items()}
    if len(xy) <= _LABELLED:
        axes.scatter(*xy.T, s=9 if len(xy) <= 60 else 5, color="#333333", zorder=3, linewidths=0, label="bus")
    for name, style in styles.items():
        if at[name]:
            points = np.unique(np.array(at[name]), axis=0)
            axes.scatter(*points.T, label=name, **({"zorder": 4, "linewidths": 1.1} | style))


def _middle(edge: Branch, xy: np.ndarray) -> np.ndarray:
    return (xy[edge.ends[0].bus] + xy[edge.ends[1].bus]) / 2


def _name_buses(axes: Axes, feeder: Feeder, xy: np.ndarray) -> None:
    """Names beside the buses, each on a side where it covers no earlier one, as far as there is such a side."""
    if len(xy) > _LABELLED:
        return
    size = 8.0 if len(xy) <= 60 else 5.5
    names: dict[tuple[float, float], list[str]] = {}
    for bus, (x, y) in zip(feeder.buses, xy.tolist(), strict=True):
        names.setdefault((x, y), []).append(printable(bus.name))
    points = 0.78 * 72 * _size(xy)[0] / max(*np.ptp(xy, axis=0).tolist(), 1e-9)  # of the paper, per unit of x
    taken: list[tuple[float, float, float, float]] = []
    for (x, y), here in names.items():
        text = ", ".join(here)
        boxes = [_box(x * points, y * points, side, 0.62 * size * len(text), size) for side in _SIDES]
        free = [not any(_overlap(box, other) for other in taken) for box in boxes]
        chosen = free.index(True) if any(free) else 0
        taken.append(boxes[chosen])
        right, up = _SIDES[chosen]
        axes.annotate(
            text,
            (x, y),
            xytext=(4 * right, 4 * up),
            textcoords="offset points",
            ha="left" if right > 0 else "right",
            va="bottom" if up > 0 else "top",
            fontsize=size,
            color="#333333",
            zorder=5,
            parse_math=False,
        )


_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def _box(x: float, y: float, side: tuple[int, int], width: float, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a text on one side of a point."""
    left = x + 4 if side[0] > 0 else x - 4 - width
    bottom = y + 4 if side[1] > 0 else y - 4 - height
    return left, bottom, left + width, bottom + height


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
