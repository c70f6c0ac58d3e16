"""Pictures of a solved feeder: `voltage_profile`, `oneline` and, as a page for the browser, `page`.

Matplotlib is imported by the functions that draw, on figures of their own: no window opens, no global state changes.

The ranges of ANSI C84.1-2020 are those of the service voltage in 120 to 600 V systems, on a 120 V base 114 to 126 V
(range A) and 110 to 127 V (range B), that is 0.95 to 1.05 and 0.917 to 1.058 pu. Above 600 V the standard's lower
limits are tighter (117 and 114 V). Voltages are to ground: in an ungrounded three-wire section they may float.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gridjax.drawing import (
    PHASES,
    RANGE_A,
    RANGE_B,
    branches,
    conductor_pairs,
    drawable,
    is_secondary,
    magnitudes,
    node_bus,
    node_phases,
    printable,
    stamp,
)
from gridjax.feeder import Feeder
from gridjax.graph import distance_km
from gridjax.oneline import oneline
from gridjax.page import page
from gridjax.powerflow.solve import PowerFlow
from gridjax.scenarios import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["oneline", "page", "voltage_histogram", "voltage_profile"]

_BANDS = ((RANGE_B, "#f4f4f4", "range B"), (RANGE_A, "#e3e9ef", "range A"))


def voltage_profile(feeder: Feeder, flow: PowerFlow, path: str | Path | None = None) -> Figure:
    """Draws the voltage of every phase against the distance from the source, along the feeder's branches.

    Nodes that no closed path of lines reaches, neutrals and values that are not finite are left out.

    Args:
      feeder: the tables of the grid that was solved.
      flow: one scenario's power flow. One that has not converged is stamped so.
      path: where to save the picture, in the format of its suffix; None does not save.

    Returns:
      The figure. In its axes each `LineCollection` has the label of its phase, with " secondary" below 1 kV.

    Raises:
      ValueError: the flow is of many scenarios or of another feeder.
    """
    from matplotlib.figure import Figure

    v = magnitudes(feeder, flow)
    km = np.array(list(distance_km(feeder).values()))[node_bus(feeder)]
    shown = drawable(feeder, v) & np.isfinite(km)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    for (low, high), colour, _ in _BANDS:
        axes.axhspan(low, high, color=colour, zorder=0, linewidth=0)
    _draw_conductors(axes, feeder, v, km, shown)
    axes.set_xlabel("distance from the source (km)")
    axes.set_ylabel("voltage to ground (pu)")
    axes.margins(x=0.02)
    _limit(axes, v[shown])
    _label_bands(axes)
    axes.grid(axis="y", color="#cccccc", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    _title(axes, feeder, v, shown)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        order = sorted(range(len(labels)), key=lambda i: (labels[i].endswith("secondary"), labels[i]))
        columns = [[handles[i] for i in order], [labels[i] for i in order]]
        figure.legend(*columns, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    if not bool(flow.converged):
        stamp(figure, axes)
    if path is not None:
        figure.savefig(path, dpi=160)
    return figure


def _draw_conductors(axes: Axes, feeder: Feeder, v: np.ndarray, km: np.ndarray, shown: np.ndarray) -> None:
    """One collection of lines for each phase, primary and secondary; a single node is a dot."""
    from matplotlib.collections import LineCollection

    phase, secondary = node_phases(feeder), is_secondary(feeder)[node_bus(feeder)]
    lines: dict[tuple[int, bool], list[Any]] = defaultdict(list)
    drawn = np.zeros(len(v), bool)
    for _, a, b in conductor_pairs(feeder, branches(feeder)):
        if shown[a] and shown[b]:
            low = bool(secondary[a] or secondary[b])
            lines[int(phase[b]), low].append([(km[a], v[a]), (km[b], v[b])])
            drawn[[a, b]] = True
    many = len(v) > 1000
    for (p, low), segments in sorted(lines.items(), key=lambda item: (not item[0][1], item[0][0])):
        if p in PHASES:
            name, colour = PHASES[p]
            width, dashes = (0.5 if many else 0.9, (0, (3, 1.5))) if low else (1.0 if many else 1.7, "solid")
            label = f"phase {name}" + (" secondary" if low else "")
            collection = LineCollection(
                segments, colors=colour, linewidths=width, linestyles=[dashes], label=label, alpha=0.75 if low else 1.0
            )
            axes.add_collection(collection)
    if not many:
        for p, (_, colour) in PHASES.items():
            which = shown & (phase == p)
            axes.scatter(km[which], v[which], s=7, color=colour, zorder=3, linewidths=0)
    axes.autoscale_view()


def _limit(axes: Axes, v: np.ndarray) -> None:
    """Limits that show the data, range A, and range B on a side where the data leave range A."""
    low, high = (float(v.min()), float(v.max())) if len(v) else RANGE_A
    low = min(low, RANGE_A[0] if low >= RANGE_A[0] else RANGE_B[0])
    high = max(high, RANGE_A[1] if high <= RANGE_A[1] else RANGE_B[1])
    margin = 0.08 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def _label_bands(axes: Axes) -> None:
    for (low, high), _, name in _BANDS:
        for value in (low, high):
            if axes.get_ylim()[0] < value < axes.get_ylim()[1]:
                axes.axhline(value, color="#8a8a8a", linewidth=0.6, linestyle=":", zorder=1)
                axes.annotate(
                    f"{name}  {value:.3f}",
                    (1.0, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="bottom" if (value == high) == (name == "range B") else "top",
                    fontsize=7,
                    color="#666666",
                    annotation_clip=False,
                )


def _title(axes: Axes, feeder: Feeder, v: np.ndarray, shown: np.ndarray) -> None:
    text = printable(feeder.name)
    if shown.any():
        names = feeder.node_names
        low = int(np.argmin(np.where(shown, v, np.inf)))
        high = int(np.argmax(np.where(shown, v, -np.inf)))
        text += f": {v[low]:.4f} pu at {printable(names[low])} to {v[high]:.4f} pu at {printable(names[high])}"
    axes.set_title(text, fontsize=11, loc="left", parse_math=False)


def voltage_histogram(name: str, outcome: Outcome, path: str | Path | None = None) -> Figure:
    """Draws how the lowest and highest voltages of many scenarios are distributed.

    Args:
      name: the feeder's name, for the title.
      outcome: from `gridjax.scenarios`; scenarios that have not converged are left out, and the title says how many.
      path: where to save the picture; None does not save.

    Returns:
      The figure.
    """
    from matplotlib.figure import Figure

    good = np.asarray(outcome.converged, bool)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    for (low, high), colour, label in _BANDS:
        axes.axvspan(low, high, color=colour, zorder=0, linewidth=0, label=f"{label}: {low:.3f} to {high:.3f}")
    if good.any():
        lowest, highest = np.asarray(outcome.min_pu)[good], np.asarray(outcome.max_pu)[good]
        edges = np.linspace(lowest.min() - 1e-6, highest.max() + 1e-6, 90)
        for values, (_, colour), label in zip(
            (lowest, highest), list(PHASES.values())[:2], ("lowest", "highest"), strict=True
        ):
            axes.hist(values, edges, color=colour, alpha=0.75, label=f"{label} voltage of a scenario")
        margin = 0.04 * (edges[-1] - edges[0])
        axes.set_xlim(edges[0] - margin, edges[-1] + margin)
    title = f"{printable(name)}: {good.sum()} random load scenarios, taps and capacitors as they stand"
    if not good.all():
        title += f", {(~good).sum()} more not converged and left out"
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel("voltage to ground (pu), the source's bus included")
    axes.set_ylabel("scenarios")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=160)
    return figure
