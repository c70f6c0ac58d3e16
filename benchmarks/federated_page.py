"""The page and the picture of `benchmarks.federated`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from algorithms.statistics import student

PARTS = ("five", "customers")


def shown(values: list[float], digits: int = 3) -> str:
    """Mean and interval over seeds."""
    i = student(np.array(values))
    value, low, high = (f"{a:.{digits}f}" for a in (i.value, i.low, i.high))
    return value if len(values) < 2 else f"{value} ({low} to {high})"


def means(record: dict[str, Any], arm: str) -> list[float]:
    """Each seed's mean score over the utilities."""
    return [float(np.mean([u["score"] for u in seed])) for seed in record["arms"][arm]]


def page(record: dict[str, Any], text: str) -> str:
    """All of it as Markdown; the text is of paragraphs, of which the first is left out."""
    lines = [
        "# Learning together",
        "",
        f"Written by `{record['command']}` on {record['made_on']}; "
        + ", ".join(f"{part} {record[part]['seconds']:.0f} s" for part in PARTS if part in record)
        + ".",
        "",
    ]
    for part in text.split("\n\n")[1:]:
        lines += [" ".join(part.split()), ""]
    lines += of_five(record["five"]) if "five" in record else ["The first part was not run to its end.", ""]
    lines += of_days(record["customers"]) if "customers" in record else ["The second part was not run to its end.", ""]
    return "\n".join(lines)


def of_five(f: dict[str, Any]) -> list[str]:
    """The first part's lines."""
    low = max(float(np.mean(means(f, arm))) for arm in f["arms"] if arm.startswith("alone"))
    high = float(np.mean(means(f, "central")))
    lines = [f"## Five utilities, {f['parameters']} shared parameters", "", "Scores:", ""]
    head = [" | ".join(f["feeders"]) + " |", "---|" * len(f["feeders"])]
    lines += ["| arm | mean | closed | " + head[0], "|---|---|---|" + head[1]]
    for arm, seeds in f["arms"].items():
        each = [shown([s[k]["score"] for s in seeds]) for k in range(len(f["feeders"]))]
        closed = "no gap" if high <= low else f"{100 * (np.mean(means(f, arm)) - low) / (high - low):.0f} %"
        closed = closed if arm.startswith("Fed") else ""
        lines += [f"| {arm} | {shown(means(f, arm))} | {closed} | {' | '.join(each)} |"]
    lines += ["", "Steps that violate the voltage limits, %:", "", "| arm | mean | " + head[0], "|---|---|" + head[1]]
    for arm, seeds in f["arms"].items():
        violated = 100 * np.array([[u["violated"] for u in s] for s in seeds])
        each = [shown(list(v), 1) for v in (violated.mean(axis=1), *violated.T)]
        lines += [f"| {arm} | {' | '.join(each)} |"]
    return [*lines, "", "Noise: " + ", ".join(f"epsilon {e}: {z:.3g} C" for e, z in f["noise"].items()) + ".", ""]


def of_days(c: dict[str, Any]) -> list[str]:
    """The second part's lines."""
    lines = ["## Owners of single days, delta a tenth of one over their number", ""]
    lines += [
        "| owners | shared parameters | epsilon | noise multiplier | noise over clip | below the bound | score | "
        "voltage-violating steps, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in c["rows"]:
        epsilon = "none" if r["epsilon"] is None else f"{r['epsilon']:g}"
        lines += [
            f"| {r['clients']} | {r['parameters']} | {epsilon} | {r['noise_multiplier']:.3g} | "
            f"{r['noise_to_clip']:.3g} | {100 * np.mean([s['inside'] for s in r['seeds']]):.0f} % | "
            f"{shown([s['score'] for s in r['seeds']])} | {shown([100 * s['violated'] for s in r['seeds']], 1)} |"
        ]
    lines += [
        "",
        f"No control: {c['no control']['score']:.3f}. The middle of every range: {c['the middle']['score']:.3f}. "
        f"Single owners alone: {shown([s['score'] for s in c['alone']])}.",
        "",
    ]
    return [*lines, "![scores](federated_results.svg)", ""]


def picture(record: dict[str, Any], path: Path) -> None:
    """Mean scores of the arms, and of the customers over epsilon."""
    from matplotlib.figure import Figure

    figure = Figure((9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms = list(record["five"]["arms"])
    for k, arm in enumerate(arms):
        values = means(record["five"], arm)
        left.plot(values, [k] * len(values), "o", ms=4, color=f"C{k % 10}")
    left.set_yticks(range(len(arms)), arms, fontsize=7)
    left.set(xlabel="mean score of five utilities (a dot a seed)", xscale="symlog")
    c = record["customers"]
    kinds_of = sorted({(r["clients"], r["parameters"]) for r in c["rows"]})
    for r in c["rows"]:
        at = 20.0 if r["epsilon"] is None else r["epsilon"]
        values, kind = [s["score"] for s in r["seeds"]], (r["clients"], r["parameters"])
        first = r is next(x for x in c["rows"] if (x["clients"], x["parameters"]) == kind)
        label = f"{kind[0]} owners, {kind[1]} parameters" if first else None
        right.plot([at] * len(values), values, "o", ms=4, color=f"C{kinds_of.index(kind)}", label=label)
    right.axhline(c["no control"]["score"], color="grey", lw=0.8, label="no control")
    right.axhline(np.mean([s["score"] for s in c["alone"]]), color="black", lw=0.8, ls=":", label="one owner alone")
    right.set(xlabel="epsilon (20: no noise)", ylabel="score", xscale="log", yscale="symlog")
    right.legend(fontsize=7)
    figure.savefig(path)
