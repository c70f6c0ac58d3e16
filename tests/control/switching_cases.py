"""A feeder with every kind of regulator and capacitor control, days on it, and OpenDSS's engine to run them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import gridjax
from benchmarks.oracle import Oracle
from gridjax.feeder import (
    Bus,
    Capacitor,
    CapacitorControl,
    Feeder,
    Generator,
    Line,
    Load,
    Regulator,
    SequenceCode,
    Source,
    Transformer,
    Winding,
)

HIGH, LOW = 12.47 / 3**0.5, 4.16 / 3**0.5
PHASES = (1, 2, 3)


def switchyard() -> Feeder:
    """src =ltc= a -l1- b =r1, r2, r3= c -l2- d =back= e -l3- f; a generator at f can turn the power in `back` round."""
    wye = tuple(
        Transformer(
            f"r{k}",
            1,
            (Winding(f"b.{k}.0", "wye", 2.4, 1000.0, 0.05), Winding(f"c.{k}.0", "wye", 2.4, 1000.0, 0.05)),
            (0.2,),
        )
        for k in PHASES
    )
    ltc = (
        Winding("src.1.2.3", "delta", 12.47, 5000.0, 0.5),
        Winding("a.1.2.3.0", "wye", 4.16, 5000.0, 0.5, min_tap=0.95, max_tap=1.1, num_taps=24),
    )
    back = (Winding("d.1.2.3.0", "wye", 4.16, 2000.0, 0.05), Winding("e.1.2.3.0", "wye", 4.16, 2000.0, 0.05))
    return Feeder(
        name="switchyard",
        frequency_hz=60.0,
        buses=(Bus("src", HIGH, PHASES), *(Bus(name, LOW, PHASES) for name in "abcdef")),
        sources=(Source("grid", "src.1.2.3", 12.47, 1.01, 0.0, 0.05, 0.4, 0.05, 0.4),),
        codes=(SequenceCode("seq", 3, 0.2, 0.4, 0.5, 1.2, 10.0, 5.0),),
        lines=(
            Line("l1", "a.1.2.3", "b.1.2.3", "seq", 0.6),
            Line("l2", "c.1.2.3", "d.1.2.3", "seq", 0.8),
            Line("l3", "e.1.2.3", "f.1.2.3", "seq", 1.0),
        ),
        transformers=(Transformer("ltc", 3, ltc, (6.0,)), *wye, Transformer("back", 3, back, (0.3,))),
        regulators=_regulators(),
        capacitors=_capacitors(),
        capacitor_controls=_controls(),
        loads=(
            Load("la", "a.1.2.3.0", 3, "wye", 1, 4.16, 300.0, 140.0, vmin_pu=0.8, vmax_pu=1.2),
            Load("ld1", "d.1.0", 1, "wye", 1, 2.4, 260.0, 140.0, vmin_pu=0.8, vmax_pu=1.2),
            Load("ld2", "d.2.0", 1, "wye", 5, 2.4, 180.0, 100.0, vmin_pu=0.8, vmax_pu=1.2),
            Load("ld3", "d.3.0", 1, "wye", 2, 2.4, 220.0, 140.0, vmin_pu=0.8, vmax_pu=1.2),
            Load("lf", "f.1.2.3", 3, "delta", 1, 4.16, 250.0, 150.0, vmin_pu=0.8, vmax_pu=1.2),
        ),
        generators=(Generator("g", "f.1.2.3.0", 3, "wye", 4.16, 400.0, 0.0, vmin_pu=0.7, vmax_pu=1.3, kva=1500.0),),
        base_mva=1.0,
    )


def _regulators() -> tuple[Regulator, ...]:
    local = {"band": 2.0, "pt_ratio": 20.0, "ct_primary_a": 300.0, "r": 1.5, "x": 2.5}
    reverse = {"reverse_vreg": 121.0, "reverse_band": 2.5, "reverse_r": 0.5, "reverse_x": 0.5}
    return (
        Regulator("ltc", "ltc", 2, 121.0, 1.5, 20.0, 700.0, 0.5, 1.0, pt_phase=2, delay_s=45.0, max_tap_change=3),
        Regulator("r1", "r1", 2, 122.0, delay_s=30.0, inverse_time=True, tap_delay_s=7.0, **local),
        Regulator("r2", "r2", 2, 122.5, delay_s=30.0, tap_delay_s=0.0, voltage_limit=124.0, **local),
        Regulator("r3", "r3", 2, 121.0, 2.0, 20.0, delay_s=20.0, monitored_bus="d.3"),
        Regulator(
            "back", "back", 2, 122.0, delay_s=30.0, reversible=True, reverse_delay_s=70.0, reverse_threshold_kw=40.0,
            **local, **reverse,
        ),
    )  # fmt: skip


def _capacitors() -> tuple[Capacitor, ...]:
    def wye(name: str, bus: str, kvar: tuple[float, ...], closed: tuple[bool, ...]) -> Capacitor:
        return Capacitor(name, f"{bus}.1.2.3", 3, "wye", 4.16, kvar, closed, f"{bus}.0.0.0")

    return (
        wye("volts", "d", (60.0, 60.0, 60.0), (True, False, False)),
        wye("kvar", "a", (150.0, 150.0), (False, False)),
        Capacitor("amps", "d.2", 1, "wye", 2.4, (50.0,), (True,), "d.0"),
        wye("factor", "b", (100.0, 100.0), (True, True)),
        Capacitor("clock", "e.1.2.3", 3, "delta", 4.16, (60.0,), (False,)),
        Capacitor("delta", "f.1.2.3", 3, "delta", 4.16, (100.0,), (True,)),
        wye("fixed", "c", (30.0,), (True,)),
    )


def _controls() -> tuple[CapacitorControl, ...]:
    element = "line.l1"
    return (
        CapacitorControl("volts", "volts", "voltage", "line.l2", 2, 118.0, 121.5, 20.0, delay_s=20.0),
        CapacitorControl("kvar", "kvar", "kvar", "transformer.ltc", 1, 320.0, 60.0, 20.0, delay_off_s=90.0),
        CapacitorControl("amps", "amps", "current", element, 1, 220.0, 150.0, 1.0, 1.0, ct_phase=2, dead_time_s=200.0),
        CapacitorControl("factor", "factor", "pf", element, 1, 0.9, -0.9, 20.0),
        CapacitorControl(
            "clock", "clock", "time", "line.l3", 1, 17.0, 7.5, 20.0, voltage_override=True, vmin=196.0, vmax=214.0
        ),
        CapacitorControl("delta", "delta", "voltage", "capacitor.delta", 1, 203.0, 215.0, 20.0, pt_phase=3),
    )  # fmt: skip


def day(feeder: Feeder, steps: int, seconds: float, seed: int) -> dict[str, np.ndarray]:
    """Loads and generation over time, of (steps, devices): a daily shape, random walks, jitter."""
    rng = np.random.default_rng(seed)
    n, m = len(feeder.loads), len(feeder.generators)
    hours = np.arange(1, steps + 1) * seconds / 3600
    shape = 0.7 + 0.35 * np.sin(2 * np.pi * (hours % 24 - 9) / 24)[:, None]
    walk = np.clip(np.cumsum(rng.normal(0, 0.03, (steps, n)), axis=0), -0.25, 0.25)
    shape = np.clip(shape + walk + rng.normal(0, 0.12, (steps, n)), 0.05, 1.3)
    sun = np.clip(np.sin(2 * np.pi * (hours % 24 - 6) / 24), 0, None)[:, None] * rng.uniform(0.4, 1.6, (steps, m))
    return {
        "load_kw": shape * np.array([x.kw for x in feeder.loads]),
        "load_kvar": shape * np.array([x.kvar for x in feeder.loads]),
        "generation_kw": sun * 2 * np.array([x.kw for x in feeder.generators]).reshape(1, m),
        "hours": hours,
    }


def points(nominal: gridjax.OperatingPoint, profile: dict[str, np.ndarray]) -> gridjax.OperatingPoint:
    """The profile's operating points, (steps, ...), with the capacitors and sources of `nominal`, taps at neutral."""
    steps = len(profile["hours"])
    fields = {
        f.name: jnp.broadcast_to(a := getattr(nominal, f.name), (steps, *a.shape)) for f in dataclasses.fields(nominal)
    }
    fields |= {key: jnp.asarray(profile[key]) for key in ("load_kw", "load_kvar")}
    if fields["generation_kw"].shape[1]:
        fields["generation_kw"] = jnp.asarray(profile["generation_kw"])
    return gridjax.OperatingPoint(**(fields | {"tap": jnp.ones_like(fields["tap"])}))


class Engine(Oracle):
    """The engine with the feeder's controls on."""

    def start(self, point: gridjax.OperatingPoint, mode: str, seconds: float | None = None) -> None:
        """Sets a point and the control mode; with `seconds`, each later solution is that much later."""
        self.command("set maxcontroliter=300")
        if seconds is None:
            self.command("set mode=snapshot")
        else:
            self.command(f"set mode=daily stepsize={seconds}s number=1 hour=0 sec=0")
        self.command(f"set controlmode={mode}")
        self.set_point(point)
        step = 0
        controlled = {c.capacitor for c in self.feeder.capacitor_controls}
        for bank in self.feeder.capacitors:  # the engine keeps the switch of a bank apart from the states of its steps
            closed = np.any(np.asarray(point.capacitor[step : step + len(bank.kvar)]) > 0)
            if bank.name in controlled:
                self.command(f"{'close' if closed else 'open'} capacitor.{bank.name} term=1")
            step += len(bank.kvar)

    def step(self, point: gridjax.OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """Solves with other loads and generation; returns taps (regulators,) and steps in service (steps,)."""
        circuit = self.engine.ActiveCircuit
        for i, load in enumerate(self.feeder.loads):
            circuit.Loads.Name = load.name
            circuit.Loads.kW, circuit.Loads.kvar = float(point.load_kw[i]), float(point.load_kvar[i])
        for i, g in enumerate(self.feeder.generators):
            self.command(f"edit generator.{g.name} kw={float(point.generation_kw[i])!r} kvar=0")
        circuit.Solution.Solve()
        assert circuit.Solution.Converged
        return self.devices()

    def devices(self) -> tuple[np.ndarray, np.ndarray]:
        circuit = self.engine.ActiveCircuit
        taps, states = [], []
        for r in self.feeder.regulators:
            circuit.Transformers.Name, circuit.Transformers.Wdg = r.transformer, r.winding
            taps.append(circuit.Transformers.Tap)
        for bank in self.feeder.capacitors:
            circuit.SetActiveElement(f"capacitor.{bank.name}")
            closed = not circuit.ActiveCktElement.IsOpen(1, 0)
            circuit.Capacitors.Name = bank.name
            states += [float(x) * closed for x in circuit.Capacitors.States]
        return np.array(taps), np.array(states)
