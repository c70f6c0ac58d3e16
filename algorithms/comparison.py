"""What came of policies on the same days, as numbers for JSON and as tables.

A policy's row has, over (seeds, days), each [value, low, high] with a 95 % interval of `algorithms.statistics`:

- "return": interquartile mean; "mean return": mean; "seeds": mean of the seeds' mean returns with Student's interval
  over seeds (over days where there is one seed, as of a policy that has not learned);
- "score": return - prices . cost, where the agent was trained with prices;
- of each constraint the mean of "cost" over a day, and "violated", the share of a day's steps whose cost is above 1e-6;
- "figures": means of the environment's own figures over a day (in Hz over its steps, in kW as kWh);
- "days ended early": the share of days that terminated, by a failed power flow for instance;
- "returns": each seed's each day's.

"gains" are means of the first policy's less another's returns on the same days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from algorithms.evaluation import Figures
from algorithms.statistics import Interval, bootstrap, iqm, mean, paired, student

OWN = ("return", "cost", "violated", "steps", "terminated")
SEED = 0  # of the resampling


def row(
    policy: str,
    figures: Figures,
    cost_names: Sequence[str],
    *,
    hours: float = 1.0,
    prices: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A policy's row.

    Args:
      policy: its name.
      figures: as from `algorithms.evaluation.evaluate`.
      cost_names: of the environment.
      hours: of a step, for figures in kW.
      prices: of each cost, for the score.

    Raises:
      ValueError: a return that is not finite.
    """
    returns, steps = figures["return"], figures["steps"]
    means = returns.mean(axis=1)
    costs = []
    for k, name in enumerate(cost_names):
        share = figures["violated"][..., k] / steps
        of = {"cost": _interval(figures["cost"][..., k], mean), "violated": _interval(share, mean)}
        costs.append({"constraint": name, **of})
    out = {
        "policy": policy, "seeds": len(returns), "days": returns.shape[1], "return": _interval(returns, iqm),
        "mean return": _interval(returns, mean), "costs": costs,
        "student": list(student(means if len(means) > 1 else returns[0])),
        "figures": {_named(n): mean(_daily(n, a, steps, hours)) for n, a in figures.items() if n not in OWN},
        "days ended early": mean(figures["terminated"]),
        "returns": [[float(f"{x:.7g}") for x in one] for one in returns],
    }  # fmt: skip
    if prices is not None and any(prices):
        out["score"] = _interval(returns - figures["cost"] @ np.asarray(prices, float), iqm)
    return out


def gains(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By how much the first policy's mean return exceeds each other's on the same days."""
    first = np.array(rows[0]["returns"])
    return {r["policy"]: list(paired(first, np.array(r["returns"]), seed=SEED)) for r in rows[1:]}


def returns_table(title: str, rows: Sequence[Mapping[str, Any]], gained: Mapping[str, Sequence[float]]) -> Table:
    """Returns of policies and what the first gains beyond each."""
    score = any("score" in r for r in rows)
    heads = ["policy", "seeds", "return, IQM", "return, mean", f"gain of {rows[0]['policy']}"]
    table = _table(title, [*heads, *(["score, IQM"] if score else [])])
    for r in rows:
        cells = [r["policy"], str(r["seeds"]), shown(r["return"]), shown(r["mean return"])]
        cells.append(shown(gained[r["policy"]]) if r["policy"] in gained else "")
        table.add_row(*map(Text, cells + ([shown(r["score"])] if "score" in r else [])))
    return table


def costs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Violations of policies and the environment's figures, means over days."""
    names = [c["constraint"] for c in rows[0]["costs"]]
    heads = [head for name in names for head in (name, f"{name.partition(',')[0]}: steps")]
    table = _table("Sums over a day, means over days", ["policy", *heads, *rows[0]["figures"], "ended early"])
    for r in rows:
        cells = [r["policy"]]
        for cost in r["costs"]:
            cells += [f"{cost['cost'][0]:.4g}", f"{100 * cost['violated'][0]:.3g} %"]
        cells += [f"{x:.5g}" for x in r["figures"].values()]
        table.add_row(*map(Text, [*cells, f"{100 * r['days ended early']:.3g} %"]))
    return table


def shown(interval: Sequence[float | None]) -> str:
    """A value and its interval, as text with as many digits as the interval leaves."""
    value, low, high = (np.nan if x is None else x for x in interval)
    if not np.isfinite([low, high]).all():
        return f"{value:.5g}"
    value, low, high = (x + 0.0 if abs(x) > 1e-12 else 0.0 for x in (value, low, high))  # no -0
    width = high - low
    digits = 3 if width <= 1e-9 * max(abs(value), 1.0) else int(np.clip(2 - np.floor(np.log10(width)), 0, 9))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plain(value: Any) -> Any:
    """As JSON has it: what is not a number is null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _table(title: str, heads: Sequence[str]) -> Table:
    out = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, head in enumerate(heads):
        out.add_column(Text(head.replace("_", " ")), justify="right" if k else "left", overflow="fold", no_wrap=not k)
    return out


def _interval(values: np.ndarray, statistic: Any) -> list[float]:
    found: Interval = bootstrap(values, statistic, seed=SEED)
    return list(found)


def _daily(name: str, values: np.ndarray, steps: np.ndarray, hours: float) -> np.ndarray:
    if name.endswith("_hz"):
        return values / steps
    return values * hours if name.endswith("_kw") else values


def _named(name: str) -> str:
    return f"{name}h" if name.endswith("_kw") else name
