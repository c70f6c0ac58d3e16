"""Tables and pictures of the two estimation examples."""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table
from scipy.stats import chi2

import gridjax
from gridjax.feeder import Feeder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def provenance(options: argparse.Namespace, script: str, started: float) -> dict[str, Any]:
    """The command without its folder, seconds since `started`, machine and versions."""
    settings = [f"--{k} {v}" for k, v in vars(options).items() if k != "out"]
    return {
        "command": " ".join([f"python examples/{script}.py", *settings]),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "versions": {"gridjax": gridjax.__version__, "jax": jax.__version__, "python": platform.python_version()},
    }


def _panels(figure: Figure) -> tuple[Axes, Axes, Axes]:
    """One wide panel over two."""
    axes = figure.subplot_mosaic([["top", "top"], ["left", "right"]])
    return axes["top"], axes["left"], axes["right"]


def line_picture(
    path: Path,
    feeder: str,
    truth: ArrayLike,
    found: ArrayLike,
    bars: np.ndarray,
    record: float,
    paths: tuple[np.ndarray, np.ndarray],
    labels: dict[str, float],
) -> None:
    """Factors (sections,) with error bars, resistances of the paths with theirs, accuracy of the labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    top, left, right = _panels(figure)
    order = np.argsort(bars)
    at = np.arange(len(order))
    f = np.asarray(found)
    top.errorbar(
        at, f[order], 1.96 * bars[order], fmt="o", color="#1f4e79", markersize=3, linewidth=0.8, label="estimate"
    )
    top.plot(at, np.asarray(truth)[order], "_", color="#c44e52", markersize=8, label="truth")
    top.axhspan(1 - 1.96 * record, 1 + 1.96 * record, color="#eeeeee", zorder=0, label="what the record says")
    top.set(xlabel="section, by error bar", ylabel="factor on R and X", title=f"{feeder}: 95 % error bars")
    top.legend(ncols=3, frameon=False, fontsize=8)
    error, bar = paths
    order = np.argsort(bar)
    left.errorbar(
        np.arange(len(bar)), 100 * error[order], 196 * bar[order], fmt="o", color="#1f4e79", markersize=3, lw=0.8
    )
    left.axhline(0, color="#c44e52", linewidth=0.8)
    left.set(xlabel="load, by error bar", ylabel="error of R from busbar to load (%)")
    right.bar(list(labels), [100 * v for v in labels.values()], color=["#bbbbbb", "#9dbcd4", "#1f4e79"])
    right.set(ylabel="phase labels right (%)", ylim=(0, 105))
    for axes in (top, left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def line_table(console: Console, r: dict[str, Any]) -> None:
    """Prints the summary."""
    table = Table(
        title=f"Lines and phases of {r['feeder']} from {r['steps']} readings", title_justify="left", show_header=False
    )
    share = {k: f"{100 * v:.0f} %" for k, v in r["labels_right"].items()}
    drawn = "not measured: labels are wrong" if r["coverage_95"] is None else (
        f"{100 * r['coverage_95']:.1f} % of all, {100 * r['coverage_95_identified']:.1f} % of the identified, "
        f"{r['draws']} draws"
    )  # fmt: skip
    rows = {
        "sections": f"{r['sections']} of {r['lines']} lines; no load behind {r['lines_without_current']} lines",
        "labels right": ", ".join(f"{k} {v}" for k, v in share.items()) + f" of {r['customers']} customers",
        "factors off (rms)": f"{r['factor_rms_error_record']:.3f} in the record, {r['factor_rms_error']:.3f} estimated",
        "identified": f"{r['sections_identified']} sections with half the record's error bar or less: "
        f"off by {r['factor_rms_error_identified']:.3f}",
        "error bars": f"{r['bar_least']:.4f} to {r['bar_largest']:.3f}, median {r['bar_median']:.3f}",
        "R and X apart": f"median {r['bar_median_r_apart']:.3f} of R, {r['bar_median_x_apart']:.3f} of X "
        f"(the record's: {r['record']})",
        "R, busbar to load": f"off by {100 * r['path_rms_error']:.2f} % (rms; the record: "
        f"{100 * r['path_rms_error_record']:.1f} %), error bar {100 * r['path_bar_median']:.2f} %",
        "within 95 % bars": drawn,
        "chi-square": f"{r['chi_square']:.0f}; about {r['chi_square_expected']} expected",
    }
    for label, text in rows.items():
        table.add_row(label, text)
    console.print(table)


def state_picture(
    path: Path, feeder: Feeder, case: dict, objective: np.ndarray, freedom: int, tables: dict[float, dict]
) -> None:
    """Errors of one case along the nodes, J of all draws against theory, detection rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    top, left, right = _panels(figure)
    phase = np.array([int(name.rpartition(".")[2]) for name in feeder.node_names])
    order, v, nodes = np.argsort(phase, stable=True), case["v"], np.arange(len(phase))
    error = {k: 100 * (v[k] - v["truth"])[order] for k in ("usual", "spoilt", "estimate")}
    top.fill_between(
        nodes, *(1.96 * s * 100 * case["std"][order] for s in (-1, 1)), color="#c9dbe9", label="95 % error bar"
    )
    for k, colour, label in (
        ("usual", "#999999", "usual loads, 1 pu"),
        ("spoilt", "#c44e52", "estimate with two gross errors"),
        ("estimate", "#1f4e79", "after removing the bad meters"),
    ):
        top.plot(nodes, error[k], color=colour, linewidth=1.0, label=label)
    top.set(xlabel="node, phase after phase", ylabel="voltage error (% of base)", title=f"{feeder.name}: one case")
    top.legend(ncols=4, frameon=False, fontsize=8)
    left.hist(objective, bins=24, density=True, color="#9dbcd4", label=f"{len(objective)} draws")
    at = np.linspace(max(1e-3, objective.min() * 0.8), objective.max() * 1.1, 200)
    left.plot(at, chi2.pdf(at, freedom), color="#1f4e79", label=f"chi-square, {freedom} degrees of freedom")
    left.set(xlabel="J at the estimate, no gross error", ylabel="density")
    left.legend(frameon=False, fontsize=8)
    for kind, colour in (("voltage", "#1f4e79"), ("flow", "#dd8452")):
        sizes = [s for s in tables if kind in tables[s]]
        for key, style in (("residual_test", "o-"), ("right_meter", "s--"), ("theory", ":")):
            label = f"{kind}: {key.replace('_', ' ')}"
            right.plot(
                sizes, [100 * tables[s][kind][key] for s in sizes], style, color=colour, markersize=4, label=label
            )
    right.set(xlabel="gross error (standard deviations of the meter)", ylabel="draws (%)", ylim=(-3, 103))
    right.legend(frameon=False, fontsize=8)
    for axes in (top, left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def state_table(console: Console, result: dict[str, Any]) -> None:
    """Prints the summary."""
    c = result["clean"]
    table = Table(title=f"State estimation on {result['feeder']}", title_justify="left", show_header=False)
    rows = {
        "states, rows": f"{result['states']} states; {result['pseudo']} pseudo-measurements, {result['meters']} meters",
        "voltage error": f"{100 * c['rms_error_usual_loads_pu']:.3f} % with usual loads, "
        f"{100 * c['rms_error_estimate_pu']:.3f} % estimated (rms, {c['draws']} draws)",
        "J, mean": f"{c['objective_mean']:.1f}; theory {c['objective_mean_theory']} "
        f"+- {c['objective_mean_standard_error']:.1f}",
        "J, spread": f"{c['objective_std']:.1f}; theory {c['objective_std_theory']:.1f}",
        "false alarms": f"{100 * c['chi_square_false_alarms']:.1f} % chi-square, "
        f"{100 * c['residual_false_alarms']:.1f} % largest residual (beyond {c['residual_threshold']:.2f}); "
        f"asked {100 * c['false_alarm_rate_asked']:.0f} %",
        "two planted": ", ".join(result["case"]["planted"]),
        "removed": ", ".join(result["case"]["removed"]) or "none",
    }
    for label, text in rows.items():
        table.add_row(label, text)
    console.print(table)
    table = Table(title="One gross error", title_justify="left")
    for head in ("meter, sigma", "draws", "chi-square", "residual", "theory", "right meter", "rms error, %"):
        table.add_column(head)
    for size, kinds in result["bad"].items():
        for kind, r in kinds.items():
            shares = (f"{100 * r[k]:.0f} %" for k in ("chi_square_test", "residual_test", "theory", "right_meter"))
            rms = [100 * r[f"rms_error_{k}_pu"] for k in ("clean", "spoilt", "after_removal")]
            table.add_row(f"{kind}, {size}", str(r["draws"]), *shares, "{:.3f}, {:.3f}, {:.3f}".format(*rms))
    console.print(table)
    console.print("rms error: without the gross error, with it, after removing the suspect")
