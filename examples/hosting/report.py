"""What `hosting_capacity.py` shows: percentiles, what limits, a table, a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from gridjax.feeder import Feeder

from .feeders import KINDS, Capacity, Case

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def element_name(feeder: Feeder, kind: int, element: int) -> str:
    """The name of what limits: a node, a line, a transformer, a bus."""
    tables = (
        feeder.node_names,
        *([x.name for x in table] for table in (feeder.lines, feeder.transformers, feeder.buses)),
    )
    return tables[kind][element]


def summarize(case: Case, weights: np.ndarray, found: Capacity) -> dict[str, Any]:
    """Percentiles over the placements that a limit ended, and counts of everything else."""
    percent = 100 * found.hosted_kw[found.limited] / case.nominal_kw.sum()
    at = (0, 5, 25, 50, 75, 95, 100)
    pairs = Counter(zip(found.kind[found.limited].tolist(), found.element[found.limited].tolist(), strict=True))
    return {
        "feeder": case.feeder.name,
        "nominal_kw": float(case.nominal_kw.sum()),
        "study": case.study._asdict(),
        "taps": np.asarray(case.point.tap).tolist(),
        "placements": len(weights),
        "limited": int(found.limited.sum()),
        "beyond_range": int(found.beyond.sum()),
        "undetermined": int(found.undetermined.sum()),
        "unsolved_power_flows": int(found.unsolved.sum()),
        "percent_of_nominal_load": {f"p{q}": float(x) for q, x in zip(at, np.percentile(percent, at), strict=True)}
        if len(percent)
        else {},
        "limited_by": {name: int(np.sum(found.kind == k)) for k, name in enumerate(KINDS)},
        "most_frequent": [
            {"kind": KINDS[k], "element": element_name(case.feeder, k, e), "placements": n}
            for (k, e), n in pairs.most_common(5)
        ],
        "reverse_power_at_capacity": int(np.sum(found.limited & (found.source_kw < 0))),
    }


def draw(case: Case, weights: np.ndarray, found: Capacity, path: Path) -> None:
    """Left the distribution of the capacity by kind of limit, right the capacity against the share of customers."""
    percent = 100 * found.hosted_kw / case.nominal_kw.sum()
    share = 100 * np.mean(weights > 0, axis=1)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [k for k in range(len(KINDS)) if np.any(found.kind == k)]
    groups = [percent[found.kind == k] for k in shown]
    labels = [f"{KINDS[k]} ({np.sum(found.kind == k)})" for k in shown]
    left.hist(groups, bins=60, stacked=True, color=[COLOURS[k] for k in shown], label=labels)
    for q in (5, 50) if groups else ():
        x = np.percentile(percent[found.limited], q)
        left.axvline(x, color="black", linewidth=1, linestyle="--")
        left.annotate(f" {q} %: {x:.0f}", (x, 0.97), xycoords=("data", "axes fraction"), fontsize=9)
    size = float(np.clip(3e4 / len(weights), 3, 15))  # points of 10,000 placements must not hide each other
    for k, group in zip(shown, groups, strict=True):
        right.scatter(share[found.kind == k], group, s=size, alpha=0.4, color=COLOURS[k], linewidths=0, rasterized=True)
    left.set_xlabel("hosting capacity (% of nominal load)")
    left.set_ylabel("placements")
    right.set_xlabel("customers with PV (%)")
    right.set_ylabel("hosting capacity (% of nominal load)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    title = f"{case.feeder.name}: {found.limited.sum()} of {len(weights)} PV placements, by what limits them"
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def show(console: Console, row: dict[str, Any]) -> None:
    """One feeder's summary as a table."""
    table = Table(title=f"PV hosting capacity of {row['feeder']}", title_justify="left", show_header=False)
    p, check, seconds = row["percent_of_nominal_load"], row["opendss"], row["seconds"]
    rows = {
        "placements": f"{row['placements']}: {row['limited']} limited, {row['beyond_range']} beyond the range, "
        f"{row['undetermined']} undetermined ({row['unsolved_power_flows']} power flows did not converge)",
        "% of nominal load": ", ".join(f"{q} {x:.1f}" for q, x in p.items()) or "no placement is limited",
        "limited by": ", ".join(f"{k} {n}" for k, n in row["limited_by"].items()),
        "most often": ", ".join(f"{m['kind']} {m['element']} ({m['placements']})" for m in row["most_frequent"][:3]),
        "reverse power": f"at the source in {row['reverse_power_at_capacity']} placements",
        "violated below": f"{row['violated_below']} of {row['scanned']} placements scanned",
        "OpenDSS": "not checked"
        if check is None
        else f"{check['same_limit']} of {check['placements']} the same limit, capacities within "
        f"{check['largest_difference_kw']:.2g} kW (bisection: {check['tolerance_kw']:.2g} kW)",
        "time": f"{seconds['run']:.1f} s, and {seconds['compile']:.1f} s to compile",
    }
    for label, text in rows.items():
        table.add_row(label, text)
    console.print(table)
