"""power-grid-model, pandapower and lightsim2grid as peers, each by its fastest exact method.

- power-grid-model: asymmetric batch calculation with columnar update data (every load's P and Q of every scenario) and
  only the voltages as output, on all threads and on one. `newton_raphson` and `iterative_current` are timed and the
  faster one counts; its `linear` and `iterative_linear` do not solve constant-power loads or are not for power flow.
- pandapower: `runpp`, one balanced phase, scenario by scenario in Python; Newton and backward/forward sweep, started
  from the last result, with and without `recycle`; the fastest counts. Needs no numba; where numba is installed it is
  used.
- lightsim2grid: `TimeSeriesCPP` (one thread, each scenario started from the last) and `InjectionSweepCPP` (all
  threads, each started from the same voltage), on KLU; the faster one counts.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import factors, nominal
from gridjax.feeder import KM_PER_UNIT, Feeder, Line, LineCode, SequenceCode, split_terminal


def length(line: Line, code: LineCode | SequenceCode) -> float:
    """The line's length in its code's unit."""
    if "none" in (line.unit, code.unit):
        return line.length
    return line.length * KM_PER_UNIT[line.unit] / KM_PER_UNIT[code.unit]


def best_of(repeats: int, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest run, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


# --- power-grid-model ---


def power_grid_model(feeder: Feeder) -> tuple[Any, np.ndarray]:
    """The circuit as a model, and where each of its nodes is in its (buses, 3) results, flattened.

    Args:
      feeder: as `benchmarks.cases.equivalent` makes it.
    """
    from power_grid_model import LoadGenType, PowerGridModel, WindingType, initialize_array

    bus = {b.name: i for i, b in enumerate(feeder.buses)}
    codes: dict[str, LineCode] = {c.name: c for c in feeder.codes if isinstance(c, LineCode)}
    sizes = [len(bus), len(feeder.lines), len(feeder.transformers), len(feeder.loads), 1]
    first = np.concatenate([[0], np.cumsum(sizes)])
    ids = [np.arange(a, b) for a, b in itertools.pairwise(first)]

    def table(kind: str, which: int) -> np.ndarray:
        out = initialize_array("input", kind, sizes[which])
        out["id"] = ids[which]
        return out

    node = table("node", 0)
    node["u_rated"] = [1e3 * math.sqrt(3) * b.base_kv for b in feeder.buses]
    line = table("asym_line", 1)
    line["from_status"] = line["to_status"] = 1
    for row, x in zip(line, feeder.lines, strict=True):
        _line(row, x, codes[x.code], bus)
    transformer = table("transformer", 2)
    for row, x in zip(transformer, feeder.transformers, strict=True):
        a, b = x.windings
        r, reactance = (a.r_percent + b.r_percent) / 100, x.x_percent[0] / 100
        values: dict[str, Any] = dict(
            from_node=bus[split_terminal(a.bus)[0]], to_node=bus[split_terminal(b.bus)[0]], from_status=1, to_status=1,
            u1=1e3 * a.kv * a.tap, u2=1e3 * b.kv * b.tap, sn=1e3 * a.kva, uk=math.hypot(r, reactance),
            pk=r * 1e3 * a.kva, i0=0.0, p0=0.0, winding_from=WindingType.delta, winding_to=WindingType.wye_n,
            clock=1 if x.lead_lag == "lag" else 11, tap_side=0, tap_pos=0, tap_min=0, tap_max=0, tap_nom=0,
            tap_size=0.0,
        )  # fmt: skip
        for key, value in values.items():
            row[key] = value
    load = table("asym_load", 3)
    load["status"], load["type"] = 1, LoadGenType.const_power
    load["node"] = [bus[split_terminal(x.bus)[0]] for x in feeder.loads]
    load["p_specified"], load["q_specified"] = 0.0, 0.0
    source = table("source", 4)
    s = feeder.sources[0]
    z = complex(s.r1_ohm, s.x1_ohm)
    source["node"], source["status"], source["u_ref"] = bus[split_terminal(s.bus)[0]], 1, s.pu
    source["u_ref"] = s.pu * s.base_kv / (math.sqrt(3) * feeder.buses[int(source["node"][0])].base_kv)
    source["u_ref_angle"] = math.radians(s.angle_deg)
    source["sk"] = node["u_rated"][source["node"]] ** 2 / abs(z)
    source["rx_ratio"], source["z01_ratio"] = z.real / z.imag, 1.0
    data = {"node": node, "asym_line": line, "transformer": transformer, "asym_load": load, "source": source}
    model = PowerGridModel({k: v for k, v in data.items() if len(v)}, system_frequency=feeder.frequency_hz)
    place = np.array([3 * i + n - 1 for i, b in enumerate(feeder.buses) for n in b.nodes])
    return model, place


def _line(row: Any, x: Line, code: LineCode, bus: dict[str, int]) -> None:
    """Fills one asym_line; a missing phase gets the impedance of a present one and no capacitance."""
    (a, nodes), (b, others) = split_terminal(x.bus1), split_terminal(x.bus2)
    if nodes != others:
        raise ValueError(f"line.{x.name} changes phases from {nodes} to {others}: power-grid-model has no such line")
    row["from_node"], row["to_node"], row["i_n"] = bus[a], bus[b], 1e6
    at, long = [n - 1 for n in nodes], length(x, code)
    for letter, values, scale in (("r", code.r, 1.0), ("x", code.x, 1.0), ("c", code.c, 1e-9)):
        full = np.eye(3) * (values[0][0] if letter != "c" else 0.0)
        full[np.ix_(at, at)] = values
        full *= long * scale
        for i, j in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)):
            row[f"{letter}_{'abc'[i]}{'abc'[j]}"] = full[i, j]


def measure_power_grid_model(feeder: Feeder, seed: int, batch: int, repeats: int, cores: int, keep: int) -> dict:
    """Microseconds a scenario on all threads and on one, and the first voltages as "v"."""
    model, place = power_grid_model(feeder)
    kw, kvar = nominal(feeder)
    spread = np.zeros((len(feeder.loads), 3))  # the share of each phase
    for row, x in zip(spread, feeder.loads, strict=True):
        phases = [n - 1 for n in split_terminal(x.bus)[1] if n]
        row[phases] = 1 / len(phases)
    scale = 1e3 * factors(seed, batch, len(kw))[:, :, None] * spread
    update = {"asym_load": {"p_specified": scale * kw[:, None], "q_specified": scale * kvar[:, None]}}
    wanted = {"node": ["u_pu", "u_angle"]}
    out: dict[str, Any] = {"batch": batch, "cores": cores, "methods_us": {}}
    best = math.inf
    for method in ("newton_raphson", "iterative_current"):

        def run(method: str = method, threading: int = cores) -> Any:
            return model.calculate_power_flow(
                symmetric=False, error_tolerance=1e-8, max_iterations=100, calculation_method=method,
                update_data=update, threading=threading, output_component_types=wanted,
            )  # fmt: skip

        seconds, result = best_of(repeats, run)
        out["methods_us"][method] = 1e6 * seconds / batch
        if seconds < best:
            best, nodes = seconds, result["node"]
            u = nodes["u_pu"][:keep] * np.exp(1j * nodes["u_angle"][:keep])
            single = best_of(repeats, lambda run=run: run(threading=-1))[0]
            out.update(method=method, us=1e6 * seconds / batch, one_core_us=1e6 * single / batch)
            out["v"] = u.reshape(len(u), -1)[:, place]
    return out


# --- pandapower and lightsim2grid ---


def pandapower_net(feeder: Feeder) -> Any:
    """One phase of a balanced feeder of sequence codes and three-phase loads."""
    import pandapower as pp

    net = pp.create_empty_network(f_hz=feeder.frequency_hz)
    codes = {c.name: c for c in feeder.codes if isinstance(c, SequenceCode)}
    index = {b.name: pp.create_bus(net, vn_kv=math.sqrt(3) * b.base_kv) for b in feeder.buses}
    pp.create_ext_grid(net, index[split_terminal(feeder.sources[0].bus)[0]], vm_pu=feeder.sources[0].pu)
    for x in feeder.lines:
        code = codes[x.code]
        near, far = (index[split_terminal(t)[0]] for t in (x.bus1, x.bus2))
        pp.create_line_from_parameters(net, near, far, length(x, code), code.r1, code.x1, code.c1, max_i_ka=1e3)
    for x in feeder.loads:
        pp.create_load(net, index[split_terminal(x.bus)[0]], x.kw / 1e3, x.kvar / 1e3)
    return net


def measure_pandapower(feeder: Feeder, seed: int, scenarios: int, repeats: int, keep: int) -> dict:
    """Microseconds a scenario of the fastest way, and the first voltages of phase 1 as "v"."""
    import pandapower as pp

    net = pandapower_net(feeder)
    kw, kvar = nominal(feeder)
    scales = factors(seed, scenarios, len(kw)) / 1e3
    numba = importlib.util.find_spec("numba") is not None
    recycle = {"bus_pq": True, "trafo": False, "gen": False}
    ways: dict[str, dict[str, Any]] = {
        "nr": {"algorithm": "nr"},
        "nr, recycle": {"algorithm": "nr", "recycle": recycle},
        "bfsw": {"algorithm": "bfsw"},
    }
    out: dict[str, Any] = {"scenarios": scenarios, "cores": 1, "ways_us": {}}
    best = math.inf
    for way, options in ways.items():
        pp.runpp(net, numba=numba, tolerance_mva=1e-8)

        def run(options: dict[str, Any] = options) -> np.ndarray:
            kept = []
            for i, scale in enumerate(scales):
                net.load["p_mw"] = scale * kw
                net.load["q_mvar"] = scale * kvar
                pp.runpp(net, init="results", numba=numba, tolerance_mva=1e-8, **options)
                polar = net.res_bus.vm_pu.to_numpy(), net.res_bus.va_degree.to_numpy()
                if i < keep:
                    kept.append(polar[0] * np.exp(1j * np.radians(polar[1])))
            return np.array(kept)

        seconds, v = best_of(repeats, run)
        out["ways_us"][way] = 1e6 * seconds / scenarios
        if seconds < best:
            best = seconds
            out.update(way=way, us=1e6 * seconds / scenarios, v=v)
    return out


def measure_lightsim2grid(feeder: Feeder, seed: int, batch: int, repeats: int, cores: int, keep: int) -> dict:
    """Microseconds a scenario of the faster class, and the first voltages of phase 1 as "v"."""
    import pandapower as pp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own modules
        from lightsim2grid.injectionSweep import InjectionSweepCPP
        from lightsim2grid.network import init_from_pandapower
        from lightsim2grid.timeSerie import TimeSeriesCPP

    net = pandapower_net(feeder)
    pp.runpp(net, numba=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it makes the ext_grid the slack, as it should
        model = init_from_pandapower(net)
    kw, kvar = nominal(feeder)
    scales = factors(seed, batch, len(kw)) / 1e3
    p, q = scales * kw, scales * kvar
    out: dict[str, Any] = {"batch": batch, "ways_us": {}}
    best = math.inf
    for way, kind, threads in (("TimeSeriesCPP", TimeSeriesCPP, 1), ("InjectionSweepCPP", InjectionSweepCPP, cores)):
        computer: Any = kind(model)
        if threads > 1:
            computer.nb_thread = threads

        def run(computer: Any = computer) -> np.ndarray:
            computer.modify_load_p(p)
            computer.modify_load_q(q)
            computer.compute(np.ones(len(net.bus), complex), 20, 1e-10)
            return computer.get_voltages()

        seconds, v = best_of(repeats, run)
        out["ways_us"][way] = 1e6 * seconds / batch
        if seconds < best:
            best = seconds
            out.update(way=way, cores=threads, us=1e6 * seconds / batch, v=np.array(v[:keep]))
    return out
