"""The figures of `benchmarks.offline_rl` as Markdown and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from algorithms.statistics import Interval, student

TITLES = {"iql": "IQL", "cql": "CQL", "td3_bc": "TD3+BC", "bc": "BC"}
WAYS = ("peer_1_thread", "peer_2_threads", "peer_2_processes")
DIFFERENCES = (
    "What is not the same, as each is taken as it comes: how networks begin (both draw uniform weights, with bounds "
    "of their own); the order of IQL's steps (ours V, then Q and the actor with the new V; d3rlpy's V and Q together, "
    "then the actor) and its first width of the actor's normal distribution (ours 1, d3rlpy's 0.22); CQL's next action "
    "(ours a sample, d3rlpy's mode) and its bounds and first size of the actor's width; BC's loss (ours the likelihood "
    "with one width for each entry, d3rlpy's square). Neither lets rates fall, scales rewards or normalises "
    "observations: rewards are scaled in the data, and voltages by fixed numbers for both. d3rlpy drops the last "
    "transition of an episode that the time limit ended; the data set it reads has one more row there, so that both "
    "learn from the same transitions."
)


def interval(part: dict[str, Any]) -> Interval:
    """Mean over the seeds, each by its mean over the episodes, with Student's 95 % interval."""
    return student(np.asarray(part["returns"]).mean(axis=1))


def verdict(mine: Interval, other: Interval) -> str:
    """Which is better, if their intervals do not overlap."""
    if mine.low > other.high:
        return "gridjax better"
    return "d3rlpy better" if mine.high < other.low else "agree"


def best_way(speed: dict[str, Any]) -> float:
    """The peer's updates a second, the fastest way to use two cores."""
    return max(speed[way] for way in WAYS)


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:,.1f}"


def _shown(i: Interval) -> str:
    digits = 0 if abs(i.value) >= 100 else 2
    return f"{i.value:.{digits}f} ({i.low:.{digits}f} to {i.high:.{digits}f})"


def pairs(record: dict[str, Any]) -> list[tuple[str, str, dict, dict]]:
    """Task, algorithm, our part and the peer's, where both are there."""
    return [
        (task, algorithm, record[f"ours-{task}-{algorithm}"], record[f"theirs-{task}-{algorithm}"])
        for task in record["tasks"]
        for algorithm in record["algorithms"]
        if f"ours-{task}-{algorithm}" in record and f"theirs-{task}-{algorithm}" in record
    ]


def returns_table(record: dict[str, Any]) -> list[str]:
    """A row for each task and algorithm."""
    lines = [
        "| task | algorithm | updates | gridjax | d3rlpy | intervals | updates/s, gridjax | updates/s, d3rlpy "
        "| times |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, algorithm, mine, other in pairs(record):
        a, b = interval(mine), interval(other)
        lines.append(
            f"| {task} | {TITLES[algorithm]} | {mine['asked']['updates']:,} | {_shown(a)} | {_shown(b)} "
            f"| {verdict(a, b)} | {_number(mine['updates_per_s'])} | {_number(other['updates_per_s'])} "
            f"| {mine['updates_per_s'] / other['updates_per_s']:.1f} |"
        )
    return lines


def speeds(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Algorithm and its part of speed, where it is there."""
    task = next(iter(record["tasks"]))
    named = ((a, record.get(f"speed-{task}-{a}")) for a in record["algorithms"])
    return [(algorithm, part) for algorithm, part in named if part is not None]


def speed_table(record: dict[str, Any]) -> list[str]:
    """Updates a second of both, and what the machine's products allow."""
    lines = [
        "| algorithm | one seed | ten seeds | d3rlpy, 1 thread | 2 threads | 2 processes | times d3rlpy's best "
        "| Mflop an update | machine, Gflop/s | most updates/s | times d3rlpy's best "
        "| share of the most, one seed | ten | ten seeds / 10 x one |",
        "|---" * 14 + "|",
    ]
    for algorithm, s in speeds(record):
        bound = s["most_updates_per_s"]
        lines.append(
            f"| {TITLES[algorithm]} | {_number(s['one_seed'])} | {_number(s['ten_seeds'])} | "
            + " | ".join(_number(s[way]) for way in WAYS)
            + f" | {max(s['one_seed'], s['ten_seeds']) / best_way(s):.1f} | {s['operations_per_update'] / 1e6:,.0f} "
            f"| {s['gflop_per_s']:,.0f} | {_number(bound)} | {bound / best_way(s):.1f} "
            f"| {s['one_seed'] / bound:.2f} "
            f"| {s['ten_seeds'] / bound:.2f} | {s['ten_over_ten_single']:.2f} |"
        )
    return lines


def page(record: dict[str, Any]) -> str:
    """All of it as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    hidden = " x ".join(map(str, record["hidden"]))
    gaps = [other["largest_gap_of_actions"] for _, _, _, other in pairs(record)]
    threads = sorted({other["threads"] for _, _, _, other in pairs(record)})
    facts = [
        f"{name}: {f['rows']:,} transitions of {f['episodes']} episodes, mean return {f['behaviour_return']:.4g}, best "
        f"{f['best_logged_return']:.4g}, rewards scaled by {f['reward_scale']:.3g}"
        for name, f in record["tasks"].items()
    ]
    settings = [
        f"{TITLES[a]}: " + ", ".join(f"{name} {value:g}" for name, value in record["settings"][a].items())
        for a in record["algorithms"]
    ]
    lines = [
        "# Offline learning beside d3rlpy",
        "",
        f"Written by `{record['command']}` on {record['machine']}: {versions}; raw figures: "
        f"[offline_peer.json](offline_peer.json). {record['note']}".rstrip(),
        "",
        f"The same generated data sets, networks ({hidden}), batches of {record['batch_size']} and settings "
        f"({'; '.join(settings)}). {'. '.join(facts)}.",
        "",
        "## Returns",
        "",
        f"Of the last actor, its mode taken, on held-out days of the grids or new starts of the pendulum, the same for "
        f"both: mean over {record['seeds']} seeds and Student's 95 % interval. d3rlpy's actors were carried over as "
        f"weights; their actions are d3rlpy's own to {max(gaps, default=0):.0e}. Updates/s are those of the training: "
        "gridjax's seeds side by side, all counted, without compiling; d3rlpy's one after another, torch's threads "
        f"{', '.join(map(str, threads))}, replay buffer in memory, no progress bar, no evaluators, no log files.",
        "",
        *returns_table(record),
        "",
        "![returns](offline_peer.svg)",
        "",
        DIFFERENCES,
        "",
        "## Speed",
        "",
        f"On {next(iter(record['tasks']))}. Updates/s of all seeds together, without compiling. An update's products "
        "are counted from the algorithm's definition, and each of their shapes is timed in a scan, before and after "
        "(the faster counts); the most updates/s is what these products alone would allow, however the rest is done. "
        "d3rlpy: one process with "
        "`torch.set_num_threads(1)`, one with 2, and two processes of one thread each, both counted.",
        "",
        *speed_table(record),
    ]
    return "\n".join(lines) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    """Returns with their intervals, a panel for each task, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = pairs(record)
    with plt.rc_context({"svg.hashsalt": "gridjax", "font.size": 9}):
        names = list(record["tasks"])
        figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), squeeze=False, layout="constrained")
        for ax, name in zip(axes[0], names, strict=True):
            mine = [(a, (x, y)) for task, a, x, y in found if task == name]
            for shift, side, color in ((-0.12, 0, "#0072b2"), (0.12, 1, "#d55e00")):
                for k, row in enumerate(mine):
                    i = interval(row[1][side])
                    bars = [[i.value - i.low], [i.high - i.value]]
                    label = ("gridjax", "d3rlpy")[side] if k == 0 else None
                    ax.errorbar(k + shift, i.value, yerr=bars, fmt="o", capsize=3, color=color, label=label)
            logged = record["tasks"][name]["behaviour_return"]
            ax.axhline(logged, color="0.5", lw=0.8, ls="--", label="mean of the data")
            ax.set_xticks(range(len(mine)), [TITLES[row[0]] for row in mine])
            ax.set_title(name)
        axes[0][0].set_ylabel("return, 95 % interval over seeds")
        axes[0][-1].legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
