"""Evaluations and comparisons as pictures (.svg or .png)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.statistics import student

FAR = 3.0  # a return this many spreads of the others below them is written instead of drawn


def returns(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Interquartile mean of each policy's return with its interval."""
    shown, left_out = _near(rows)
    with _figure(path, 1, 1, (6.0, 0.6 + 0.3 * len(shown))) as axes:
        ax = axes[0]
        for k, row in enumerate(shown):
            value, low, high = row["return"]
            error = [[0.0], [0.0]] if low is None or low != low else [[value - low], [high - value]]
            ax.errorbar([value], [k], xerr=error, fmt="o", capsize=2, ms=4, color=f"C{k}")
        ax.set_yticks(range(len(shown)), [row["policy"] for row in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlabel("return, interquartile mean and 95 % interval" + left_out)


def costs(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Return against each cost that anyone has, a point a policy with its intervals."""
    shown, left_out = _near(rows)
    names = [cost["constraint"] for cost in shown[0]["costs"]]
    paid = [n for n in range(len(names)) if any(row["costs"][n]["cost"][0] > 0 for row in shown)] or [0]
    with _figure(path, 1, len(paid), (3.4 * max(len(paid), 1.5), 3.2)) as axes:
        for n, ax in zip(paid, axes, strict=True):
            for k, row in enumerate(shown):
                at = (row["costs"][n]["cost"], row["return"])
                ends = [[[x[0] - x[1]], [x[2] - x[0]]] if x[1] == x[1] and x[1] is not None else None for x in at]
                # A percentile interval may leave the statistic itself out.
                ends = [None if e is None else np.maximum(e, 0.0) for e in ends]
                ax.errorbar(
                    [at[0][0]], [at[1][0]], xerr=ends[0], yerr=ends[1], fmt="o", ms=4, color=f"C{k}",
                    label=row["policy"],
                )  # fmt: skip
            ax.set(xlabel=f"{names[n]}, sum over a day", ylabel="return, interquartile mean")
        axes[0].legend(fontsize=6, title=left_out.strip(" ()") or None, title_fontsize=6)


def curves(tables: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str], path: Path) -> None:
    """Metrics over updates: means over seeds with Student's 95 % intervals.

    Args:
      tables: of each run, as `algorithms.metrics.read` has them.
      names: of the metrics.
      path: of the picture.
    """
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with _figure(path, rows, columns, (4.0 * columns, 2.4 * rows + 0.4)) as axes:
        for ax, name in zip(axes, names, strict=False):
            for k, (run, table) in enumerate(tables.items()):
                if name not in table:
                    continue
                at, found = curve(table, name)
                ax.plot(at, found[:, 0], color=f"C{k}", label=run)
                ax.fill_between(at, found[:, 1], found[:, 2], color=f"C{k}", alpha=0.2, linewidth=0)
            ax.set(title=name.replace("_", " "), xlabel="updates")
        for ax in axes[len(names) :]:
            ax.set_axis_off()
        axes[0].legend(fontsize=6)


def curve(table: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Updates (points,), and the metric's mean over seeds with its interval (points, 3)."""
    at = np.unique(table["updates"])
    return at, np.array([student(table[name][table["updates"] == u]) for u in at])


def _near(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Without policies that are so far off that the others could not be told apart, and a text that says so."""
    others = [row["return"][0] for row in rows if row["policy"] != "random"]
    if not others:
        return list(rows), ""
    floor = min(others) - FAR * max(max(others) - min(others), 1e-9)
    kept = [row for row in rows if row["policy"] != "random" or row["return"][0] >= floor]
    left = [row for row in rows if row not in kept]
    return kept, "".join(f" ({row['policy']}: {row['return'][0]:.4g})" for row in left)


@contextmanager
def _figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "gridjax", "font.size": 8}):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        try:
            yield list(axes.flat)
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        finally:
            plt.close(figure)
