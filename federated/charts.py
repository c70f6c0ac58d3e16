"""Federations as pictures: what rounds spent and moved, and what utilities gained."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rounds(table: Path, path: Path) -> None:
    """Epsilon, and the updates' norm with the bound, over the rounds of a rounds.csv."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    figure, axes = _figure(2, (7.0, 2.8))
    number = column["round"]
    axes[0].plot(number, column["norm"], color="C0", label="mean norm of the updates")
    if np.isfinite(column["bound"]).all():
        axes[0].plot(number, column["bound"], color="C1", label="bound")
    axes[0].set(xlabel="round", ylabel="Euclidean norm", yscale="log" if (column["norm"] > 0).all() else "linear")
    axes[0].legend(fontsize=7)
    if np.isfinite(column["epsilon"]).all():
        axes[1].plot(number, column["epsilon"], color="C3")
        axes[1].set(xlabel="round", ylabel="epsilon spent", ylim=(0, None))
    else:
        axes[1].axis("off")
        axes[1].text(0.5, 0.5, "no noise: no privacy is claimed", ha="center", va="center")
    _save(figure, path)


def scores(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What each utility gained over no control on its held-out days, as a share of no control's score."""
    figure, (ax,) = _figure(1, (6.0, 1.0 + 0.35 * len(rows)))
    size = [abs(row["no_control"]) or 1.0 for row in rows]
    gain = [100 * row["gain"] / s for row, s in zip(rows, size, strict=True)]
    half = [100 * (row["gain_half"] or 0.0) / s for row, s in zip(rows, size, strict=True)]
    ax.barh(range(len(rows)), gain, xerr=half, color=["C2" if g > 0 else "C3" for g in gain], capsize=2)
    ax.set_yticks(range(len(rows)), [f"{row['name']}\n{row['env']}" for row in rows], fontsize=7)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel("score over no control, % of it (mean and 95 % interval over days)")
    _save(figure, path)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path)
