"""The benchmark's figures as Markdown and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PREFERRED_BATCH = 1024  # the batch of the summary, where it was run


def rate(us: float | None) -> str:
    """Scenarios a second from microseconds a scenario, three digits."""
    if not us:
        return ""
    value = 1e6 / us
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(peer_us: float | None, us: float | None) -> str:
    """How many times faster; empty where one is missing."""
    return f"{peer_us / us:.1f}" if peer_us and us else ""


def run_of(case: dict, dtype: str) -> dict:
    """gridjax's figures in a precision; empty if it was not asked for."""
    return next((r for r in case["gridjax"] if r["dtype"] == dtype), {"rows": []})


def row_of(case: dict, dtype: str, batch: int | None = None) -> dict:
    """The row of a batch (None: the preferred one, or the largest that ran); empty if it was not run."""
    rows = {r["batch"]: r for r in run_of(case, dtype)["rows"] if "us" in r}
    if batch is None:
        batch = PREFERRED_BATCH if PREFERRED_BATCH in rows else max(rows, default=0)
    return rows.get(batch, {})


def _rule(header: str) -> str:
    return "|" + "---|" * (header.count("|") - 1)


def _table(header: str, rows: list[str]) -> list[str]:
    return [header, _rule(header), *rows, ""]


def summary(record: dict) -> list[str]:
    """One row a case: the table of which README shows rows."""
    n = record["meta"]["cores"]
    header = (
        f"| feeder | nodes | batch | OpenDSS, 1 core | OpenDSS, {n} cores | float64 | times 1 core | times {n} cores "
        f"| float32 | times 1 core | times {n} cores | sweeps | compile, s |"
    )
    rows = []
    for case in record["cases"]:
        d, f, dss = row_of(case, "float64"), row_of(case, "float32"), case.get("opendss", {})
        one, every = dss.get("one_core_us"), dss.get("all_cores_us") or dss.get("one_core_us")
        run = run_of(case, "float64" if d else "float32")
        shown = d or f
        compiling = f"{run['grid_seconds']:.1f} + {shown['jit_seconds']:.1f}" if shown else "not run"
        rows.append(
            f"| {case['feeder']} | {case['nodes']} | {shown.get('batch', '')} | {rate(one)} | {rate(every)} "
            f"| {rate(d.get('us'))} | {times(one, d.get('us'))} | {times(every, d.get('us'))} "
            f"| {rate(f.get('us'))} | {times(one, f.get('us'))} | {times(every, f.get('us'))} "
            f"| {shown.get('iterations', float('nan')):.1f} | {compiling} |"
        )
    return _table(header, rows)


def other_peers(record: dict) -> list[str]:
    """power-grid-model, pandapower and lightsim2grid."""
    header = "| feeder | nodes | peer | its way | batch | cores | scenarios/s | gridjax float64 | times | gap, pu |"
    rows = []
    for case in record["cases"]:
        for name in ("power-grid-model", "pandapower", "lightsim2grid"):
            peer = case.get(name)
            if peer is None:
                continue
            if "not_run" in peer:
                rows.append(f"| {case['feeder']} | {case['nodes']} | {name} | not run: {peer['not_run']} | | | | | | |")
                continue
            d = row_of(case, "float64")
            found = [(peer["us"], peer["cores"])]
            if peer["cores"] > 1 and "one_core_us" in peer:
                found.append((peer["one_core_us"], 1))
            for us, used in found:
                rows.append(
                    f"| {case['feeder']} | {case['nodes']} | {name} | {peer.get('method', peer.get('way'))} "
                    f"| {peer.get('batch', peer.get('scenarios'))} | {used} | {rate(us)} "
                    f"| {rate(d.get('us'))} | {times(us, d.get('us'))} | {case['gaps_to_opendss_pu'][name]:.0e} |"
                )
    return _table(header, rows) if rows else []


def batches(record: dict) -> list[str]:
    """Every batch in every precision."""
    n = record["meta"]["cores"]
    header = (
        "| feeder | nodes | precision | batch | scenarios/s | median | with currents and losses "
        f"| times OpenDSS, 1 core | times OpenDSS, {n} cores | times power-grid-model | peak memory, MiB | gap, pu |"
    )
    rows = []
    for case in record["cases"]:
        dss, pgm = case.get("opendss", {}), case.get("power-grid-model", {})
        one, every = dss.get("one_core_us"), dss.get("all_cores_us") or dss.get("one_core_us")
        for run in case["gridjax"]:
            for r in run["rows"]:
                head = f"| {case['feeder']} | {case['nodes']} | {run['dtype']} | {r['batch']} |"
                if "not_run" in r:
                    rows.append(f"{head} not run: {r['not_run']} | | | | | | | |")
                    continue
                more = r.get("results", {})
                results = f"not run: {more['not_run']}" if "not_run" in more else rate(more.get("us"))
                rows.append(
                    f"{head} {rate(r['us'])} | {rate(r['us_median'])} | {results} "
                    f"| {times(one, r['us'])} | {times(every, r['us'])} | {times(pgm.get('us'), r['us'])} "
                    f"| {r['peak_mib']:,.0f} | {r['gap_pu']:.0e} |"
                )
    return _table(header, rows)


def compiling(record: dict) -> list[str]:
    """Seconds before the first answer, and the time of a single one."""
    header = "| feeder | nodes | precision | `compile`, s | jit, s | one solve, us | OpenDSS, us | peak memory, MiB |"
    rows = []
    for case in record["cases"]:
        for run in case["gridjax"]:
            if "grid_seconds" in run:
                one = case.get("opendss", {}).get("one_core_us")
                rows.append(
                    f"| {case['feeder']} | {case['nodes']} | {run['dtype']} | {run['grid_seconds']:.1f} "
                    f"| {run['jit_seconds']:.1f} | {run['latency_us']:,.0f} | {one:,.0f} | {run['peak_mib']:,.0f} |"
                )
    return _table(header, rows)


def ways(record: dict) -> str:
    """How OpenDSS's loads were written, and what the other ways took."""
    parts = []
    for case in record["cases"]:
        dss = case.get("opendss")
        if dss:
            listed = ", ".join(f"{way} {us:,.0f}" for way, us in dss["ways_us"].items())
            parts.append(f"{case['feeder']}: {dss['way']} ({listed})")
    return "; ".join(parts)


def table(record: dict) -> str:
    """All of it as Markdown."""
    meta = record["meta"]
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    n = meta["cores"]
    parts = [
        "# Throughput beside other power-flow tools\n",
        f"Written by `{meta['command']}` on {meta['date']}: {meta['processor']}, {n} cores; gridjax on "
        f"{meta['device']}, all cores of a CPU; seed {meta['seed']}, best of {meta['repeats']} runs. {versions}. Raw "
        "figures: [powerflow.json](powerflow.json).\n",
        "Scenarios a second. Every load has its own factor between 0.5 and 1.5 in every scenario, all of them are "
        "written anew, and all node voltages are read. Tolerance 1e-8 pu for every tool; gridjax in float32 1e-6 pu. "
        "The first scenarios of every batch agree between all tools to 1e-6 pu (float32: 1e-5), else nothing is "
        "written. gridjax is the plain `jax.jit(jax.vmap(gridjax.solve, in_axes=(None, 0)))`; compiling is apart: "
        "`gridjax.compile` + jit.\n",
        "## Summary\n",
        *summary(record),
        "![throughput against batch](powerflow_batch.svg)\n",
        "![throughput against nodes](powerflow_nodes.svg)\n",
        f"OpenDSS on {n} cores is one engine a process, the scenarios split among them. Its loads are written by the "
        f"fastest of three ways; microseconds a scenario of each, over four scenarios: {ways(record)}.\n",
    ]
    others = other_peers(record)
    if others:
        parts += [
            "## Other peers\n",
            "`_equivalent` circuits are those that power-grid-model can express (constant power in wye, no regulators, "
            "no single-phase transformers; `benchmarks/cases.py` says how they are made), and all tools solve the same "
            "one. pandapower and lightsim2grid solve one balanced phase where gridjax solves three.\n",
            *others,
        ]
    parts += ["## Every batch\n", *batches(record), "## Compiling, and a single solve\n", *compiling(record)]
    return "\n".join(parts).rstrip() + "\n"


def plots(record: dict, folder: Path) -> None:
    """Throughput against batch and against nodes, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "gridjax", "font.size": 9}):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
        for ax, dtype in zip(axes, ("float64", "float32"), strict=True):
            _against_batch(ax, record, dtype)
        axes[0].set_ylabel("scenarios/s")
        figure.savefig(folder / "powerflow_batch.svg", metadata={"Date": None})
        plt.close(figure)
        figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
        _against_nodes(ax, record)
        figure.savefig(folder / "powerflow_nodes.svg", metadata={"Date": None})
        plt.close(figure)


def _against_batch(ax: Any, record: dict, dtype: str) -> None:
    for k, case in enumerate(c for c in record["cases"] if not c["feeder"].endswith("_equivalent")):
        rows = [r for r in run_of(case, dtype)["rows"] if "us" in r]
        if not rows:
            continue
        line = ax.plot(
            [r["batch"] for r in rows], [1e6 / r["us"] for r in rows], "o-", label=case["feeder"], color=f"C{k}"
        )
        one = case.get("opendss", {}).get("one_core_us")
        if one:
            ax.axhline(1e6 / one, color=line[0].get_color(), linestyle=":", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="batch", title=f"{dtype}; dotted: OpenDSS on one core")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)


def _against_nodes(ax: Any, record: dict) -> None:
    n = record["meta"]["cores"]
    lines: dict[str, list[tuple[int, float]]] = {}
    for case in record["cases"]:
        if case["feeder"].endswith("_equivalent"):
            us = case.get("power-grid-model", {}).get("us")
            lines.setdefault("power-grid-model (equivalents)", []).append((case["nodes"], us or 0))
            continue
        dss = case.get("opendss", {})
        lines.setdefault("OpenDSS, 1 core", []).append((case["nodes"], dss.get("one_core_us") or 0))
        lines.setdefault(f"OpenDSS, {n} cores", []).append((case["nodes"], dss.get("all_cores_us") or 0))
        for dtype in ("float64", "float32"):
            lines.setdefault(f"gridjax, {dtype}", []).append((case["nodes"], row_of(case, dtype).get("us") or 0))
    for label, points in lines.items():
        points = sorted(p for p in points if p[1])
        if points:
            ax.plot([p[0] for p in points], [1e6 / p[1] for p in points], "o-", label=label)
    ax.set(xscale="log", yscale="log", xlabel="nodes", ylabel="scenarios/s")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)
