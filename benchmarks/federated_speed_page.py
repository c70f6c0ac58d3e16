"""The figures of `benchmarks.federated_speed` as Markdown."""

from __future__ import annotations

from typing import Any

NAMES = {"pfl": "pfl-research", "flower": "Flower"}
MOST_OVERHEAD, LEAST_SPEEDUP, LINEAR_FROM = 0.20, 20.0, 100


def page(record: dict[str, Any]) -> str:
    """All of it."""
    known = dict(record["versions"])
    for part in record.get("beside", []):
        for peer in part["peers"]:
            known |= {k: v for k, v in peer["versions"].items() if k != "numpy"}
    parts = [
        "# Speed of federated rounds\n",
        f"Written by `{record['command']}` on {record['machine']}, {record['cores']} cores; "
        f"{', '.join(f'{k} {v}' for k, v in known.items())}. Raw figures: "
        "[federated_speed.json](federated_speed.json).\n",
        f"Behaviour cloning of {record['observations']} observations and {record['actions']} actions in single "
        f"precision, steps of Adam at {record['rate']:g} on batches that follow each other, from the server's weights "
        f"with a new optimiser in every round; updates clipped to {record['bound']:g}, averaged, with noise of "
        f"{record['noise']:g} times the clip on their sum. Seconds are medians; compiling is apart.\n",
        *_overheads(record["overheads"]),
        *(_beside(record["beside"]) if "beside" in record else []),
        *_sizes(record["sizes"]),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _load(row: dict[str, Any]) -> str:
    return f"{row['parameters']:,} | {row['clients']:,} | {row['steps']} x {row['batch']}"


def _overheads(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        f"| {_load(r)} | {1e3 * r['steps_s']:.1f} | {1e3 * r['round_s']:.1f} | {100 * r['overhead']:.1f} "
        f"({100 * r['least']:.1f} to {100 * r['greatest']:.1f}) | {r['compile_steps_s']:.1f} "
        f"| {r['compile_round_s']:.1f} |"
        for r in rows
    ]
    main = rows[0]
    met = "is met" if main["overhead"] <= MOST_OVERHEAD else "is missed"
    return [
        "## What a round adds to its local steps\n",
        "Local steps: the same steps under the same scan and `vmap`, which return the clients' states. Round: with "
        "clip, noise, sum, server step and what keeps absent and failed clients out. Both run in turns; the overhead "
        "is the median of the turns' ratios, with the least and the greatest.\n",
        "| parameters | clients | steps x rows | local steps, ms | round, ms | overhead, % | compile steps, s | "
        "compile round, s |",
        "|---|---|---|---|---|---|---|---|",
        *table,
        "",
        f"At most {100 * MOST_OVERHEAD:.0f} % was asked for {main['parameters']:,} parameters: that {met}.\n",
    ]


def _beside(parts: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Beside pfl-research and Flower\n",
        "The peers run the same steps in torch, from the same first weights on the same rows, each with its own clip, "
        "mean and Gaussian noise, in the same run. pfl-research simulates in one process, or in several by "
        "torch.distributed; Flower by its simulation on Ray, an actor for each core. `gap`: distance of the weights "
        "from gridjax's after two rounds without noise, as a share of the way that they went; above 1e-3 nothing is "
        "written. The first round of each is left out (it starts processes, or warms up).\n",
        "| parameters | clients | steps x rows | tool | processes x threads | rounds/s | gridjax, times | gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    said = []
    for part in parts:
        lines.append(f"| {_load(part)} | gridjax | all cores | {part['rounds_per_s']:.2f} | | |")
        for peer in part["peers"]:
            times = part["rounds_per_s"] / peer["rounds_per_s"]
            lines.append(
                f"| {_load(part)} | {NAMES[peer['peer']]} | {peer['processes']} x {peer['threads']} "
                f"| {peer['rounds_per_s']:.2f} | {times:.1f} | {peer['gap']:.0e} |"
            )
        lines.append(f"| {_load(part)} | matrix products alone | all cores | {part['products_rounds_per_s']:.2f} | | |")
        said.append(_speedup(part))
    return [*lines, "", *said]


def _speedup(part: dict[str, Any]) -> str:
    """Whether the wanted factor is reached, and whether the machine allows it."""
    shown = []
    for name in NAMES:
        ways = [peer["rounds_per_s"] for peer in part["peers"] if peer["peer"] == name]
        if not ways:
            continue
        times, allowed = part["rounds_per_s"] / max(ways), part["products_rounds_per_s"] / max(ways)
        met = "met" if times >= LEAST_SPEEDUP else "missed"
        text = f"{times:.1f} times {NAMES[name]} the fastest way, {LEAST_SPEEDUP:.0f} was asked: {met}"
        if allowed < LEAST_SPEEDUP:
            text += f" (the products alone would allow {allowed:.1f})"
        shown.append(text)
    return f"{part['parameters']:,} parameters: {'; '.join(shown)}.\n"


def _sizes(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        f"| {_load(r)} | {1e3 * r['round_s']:.2f} | {1e6 * r['round_s'] / r['clients']:.1f} | {r['peak_mib']:,.0f} "
        f"| {r['compile_s']:.1f} |"
        for r in rows
    ]
    each = {r["clients"]: r["round_s"] / r["clients"] for r in rows}
    most = max(each)
    ratio = ""
    if LINEAR_FROM in each and most > LINEAR_FROM:
        ratio = (
            f"A client of {most:,} costs {each[most] / each[LINEAR_FROM]:.2f} times the time of one of {LINEAR_FROM}.\n"
        )
    return [
        "## With many clients\n",
        "Whole rounds, each number of clients in a process of its own, with its peak memory (Python, JAX and the "
        "compiler included).\n",
        "| parameters | clients | steps x rows | round, ms | us a client | peak memory, MiB | compile, s |",
        "|---|---|---|---|---|---|---|",
        *table,
        "",
        ratio,
    ]
