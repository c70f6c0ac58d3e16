"""The environments' baselines as a page and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {
    "return": "return", "beyond no control": "beyond no control", "score": "score", "loss_kwh": "losses, kWh",
    "source_kwh": "from the source, kWh", "capacitor_moves": "capacitor moves", "tap_moves": "tap moves",
    "energy_cost": "energy, money", "curtailed_kwh": "curtailed, kWh", "undelivered_kwh": "not delivered, kWh",
    "wear_cost": "wear, money", "unserved_kwh": "not served, kWh", "energy_not_served_kwh": "not served, kWh",
    "fuel_cost": "fuel, money", "blackout_cost": "blackouts, money",
}  # fmt: skip
SAME = "the return is the score"  # no row of its own
LEFT_OUT = {
    "source_kwh",
    "wear_cost",
    "energy_cost",
    "forming_kwh",
    "weighted_kwh",
    "unserved_cost",
}  # of the page, not of the record


def number(value: float) -> str:
    """Four digits, but whole numbers whole."""
    if value != value:
        return ""
    value = 0.0 if abs(value) < 1e-6 else value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"


def cell(entry: dict[str, float] | None) -> str:
    """Mean +- half of the interval."""
    if entry is None:
        return ""
    half = entry["half"]
    if half < 1e-6 or half != half:
        return number(entry["mean"])
    return f"{number(entry['mean'])} ± " + (f"{half:,.0f}" if half >= 100 else f"{half:.2g}")


def section(case: dict[str, Any]) -> list[str]:
    """One environment."""
    run = [row for row in case["rows"] if "means" in row]
    shown = [name for name in run[0]["means"] if name not in LEFT_OUT]
    heads: list[str] = [LABELS.get(name) or str(name).replace("_", " ") for name in shown]
    for constraint in case["constraints"]:
        what, _, unit = constraint.partition(", ")
        heads += [f"{what}: steps", f"{what}: mean, {unit}" if unit else f"{what}: mean"]
    heads += ["not solved"]
    lines = [
        f"## {case['name']}\n",
        ", ".join(f"{count} {kind}" for kind, count in case["devices"].items()) + f"; {effort(case)}\n",
        f"| policy | days | {' | '.join(heads)} |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for row in run:
        cells: list[str] = [cell(row["means"].get(name)) for name in shown]
        if "violations" in row:
            for violation in row["violations"]:
                size = f"{violation['mean_size']:.3g}" if violation["share"] else ""
                cells += [f"{100 * violation['share']:.3g} %", size]
            cells.append(f"{row['unsolved']} of {row['steps']}")
        else:
            cells += [""] * (len(heads) - len(cells))
        lines.append(f"| {row['policy']} | {row['days']} | {' | '.join(cells)} |")
    for row in case["rows"]:
        if "not_run" in row and row["not_run"] != SAME:
            lines.append(f"| {row['policy']} | - | {row['not_run']} {'| ' * (len(heads) - 1)}|")
    return [*lines, ""]


def effort(case: dict[str, Any]) -> str:
    """What was searched, in words."""
    done = case["effort"]
    text = f"constant action from {done['training']} training days, search on {done['searched']} of the held-out days"
    named = zip(case["price"], case["constraints"], strict=True)
    prices = ", ".join(f"{number(p)} per {unit(name)} and step" for p, name in named)
    if case["search"] == "gradient":
        return f"{text}, {done['iterations']} steps of the gradient from each start; score: return less {prices}."
    if case["search"] == "steps":
        return f"{text}, step by step from the other policies' actions; score: return less {prices}."
    where = "positions near the present ones" if done["near"] else "all positions"
    return f"{text}, {where}, up to {done['sweeps']} sweeps over the devices."


def unit(constraint: str) -> str:
    """ "pu of voltage violation" from "voltage violation, pu"."""
    what, _, of = constraint.partition(", ")
    return f"{of} of {what}" if of else what


def page(record: dict[str, Any]) -> str:
    """All of it as Markdown."""
    meta, cases = record["meta"], record["environments"]
    commands = " and ".join(f"`{command}`" for command in dict.fromkeys(case["command"] for case in cases))
    used = f"{meta['cores']} core" + ("s" if meta["cores"] > 1 else "")
    lines = [
        "# Baselines of the environments\n",
        f"Written by {commands} on {meta['date']}: {meta['processor']}, {used}, float64, "
        f"{sum(case['seconds'] for case in cases) / 60:.0f} minutes; "
        + ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
        + ". Raw figures: [baselines.json](baselines.json).\n",
        *explanation(meta["seeds"]),
        "![returns](baselines_returns.svg)\n",
        "![violations](baselines_violations.svg)\n",
    ]
    for case in cases:
        lines += section(case)
    return "\n".join(lines).rstrip() + "\n"


def explanation(seeds: dict[str, int]) -> list[str]:
    """What the tables say."""
    held_out, training = seeds["held out"], seeds["training"]
    return [
        "Figures are sums over a day (in Hz: means over its steps): the mean over held-out days ± half of the 95 % "
        "interval (Student's t over days). "
        f"The held-out days are those of seed {held_out} (`make(name, seed={held_out})`), the days on which the best "
        f"constant action was searched those of seed {training}; both are spread over the year. *Beyond no control* is "
        "the mean of the differences on the same days. A constraint's two columns are the share of steps in which it "
        "is violated (by more than 1e-6) and the mean violation, summed over nodes or elements, in those steps. *Not "
        "solved* counts power flows that did not converge, which end their days.\n",
        "*search, full knowledge* knows the whole day. It is what a search attained, played in the environment: the "
        "optimum is at least as good, and how much better it could be is not proven. In Volt-VAR control it is dynamic "
        "programming over each device's path in turn (`benchmarks/searches.py`); in DER control and the microgrid "
        "gradient ascent through the environment, from no control's actions and from those of the policy that is best "
        "on the day (`benchmarks/ascent.py`), and the best constant action there is what the same ascent over all "
        "training days finds from no control's: a local optimum, of which there may be better ones; in "
        "restoration each step in turn at all its positions: for the score, which prices violations, and for the "
        "return alone. Where it ran on fewer days, compare it by *beyond no control*.\n",
        "*OpenDSS-like controls* are the feeder's regulator and capacitor controls; in restoration, the operator's "
        "rule: isolate what is faulted, then close what restores most.\n",
        "Days are drawn by `gridjax.days`; they are not those of powergym's own files, so that returns of the Powergym "
        "environments are near those published for powergym, not equal.\n",
    ]


def plots(record: dict[str, Any], folder: Path) -> None:
    """What each policy adds to the return, and violations against it, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = record["environments"]
    with plt.rc_context({"svg.hashsalt": "gridjax", "font.size": 8}):
        for file, draw in (("baselines_returns.svg", _returns), ("baselines_violations.svg", _violations)):
            columns = min(3, len(cases))
            rows = -(-len(cases) // columns)
            figure, axes = plt.subplots(
                rows, columns, figsize=(4 * columns, 2.2 * rows + 0.6), squeeze=False, layout="constrained"
            )
            for ax, case in zip(axes.flat, cases, strict=False):
                draw(ax, case)
                ax.set_title(case["name"])
            for ax in list(axes.flat)[len(cases) :]:
                ax.set_axis_off()
            figure.savefig(folder / file, metadata={"Date": None})
            plt.close(figure)


def _rows(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in case["rows"] if "means" in row]


def _returns(ax: Any, case: dict[str, Any]) -> None:
    """Score (or return) of each policy; random moves are written, as they are far off."""
    names, values, run = [], [], _rows(case)
    for row in run:
        if "score" in run[0]["means"] and "score" not in row["means"]:
            continue
        means = row["means"].get("score", row["means"]["return"])
        if row["policy"] == "random":
            ax.set_xlabel(f"{'score' if 'score' in row['means'] else 'return'} a day (random: {means['mean']:.3g})")
            continue
        names.append(row["policy"])
        values.append(means)
    ax.errorbar(
        [v["mean"] for v in values], range(len(names)), xerr=[v["half"] for v in values], fmt="o", capsize=2, ms=4
    )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _violations(ax: Any, case: dict[str, Any]) -> None:
    """Violations a step of the first constraint against return, a point a policy."""
    for k, row in enumerate(_rows(case)):
        if row["policy"] == "random" or "violations" not in row:
            continue
        violation = row["violations"][0]
        ax.plot(
            violation["share"] * violation["mean_size"], row["means"]["return"]["mean"], "o", color=f"C{k}",
            label=row["policy"],
        )  # fmt: skip
    ax.set(xlabel=f"{case['constraints'][0]}, mean over steps", ylabel="return a day")
    ax.legend(fontsize=6)
