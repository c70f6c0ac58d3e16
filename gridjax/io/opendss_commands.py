"""Records as OpenDSS commands, with all digits of their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gridjax.feeder import (
    Admittance,
    Bus,
    Capacitor,
    CapacitorControl,
    Feeder,
    Generator,
    Geometry,
    Line,
    LineCode,
    Load,
    Matrix,
    PVSystem,
    Reactor,
    Regulator,
    SequenceCode,
    Source,
    Storage,
    Switch,
    Transformer,
    Wire,
    split_terminal,
)


def text(value: object) -> str:
    """A property's value as OpenDSS reads it, with all digits."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float() | np.floating():
            return repr(float(value))
        case tuple() if value and isinstance(value[0], tuple):
            return "[" + " | ".join(" ".join(map(text, row)) for row in value) + "]"
        case tuple():
            return "[" + " ".join(map(text, value)) + "]"
    return str(value)


def command(head: str, **values: object) -> str:
    """A command and its properties in order; `pct_x` stands for `%x`, None is left out."""
    items = ((key.replace("pct_", "%").rstrip("_"), value) for key, value in values.items())
    return " ".join([head, *(f"{key}={text(value)}" for key, value in items if value is not None)])


# --- Sources, wires, codes. ---


def source(source: Source, hz: float) -> str:
    """A Source as a Vsource; `source` is the one that `New Circuit` makes."""
    r2 = source.r1_ohm if source.r2_ohm is None else source.r2_ohm
    x2 = source.x1_ohm if source.x2_ohm is None else source.x2_ohm
    zero = (source.r0_ohm, source.x0_ohm)
    phases = len(split_terminal(source.bus)[1])
    return command(
        f"{'Edit' if source.name.lower() == 'source' else 'New'} Vsource.{source.name}",
        bus1=source.bus,
        phases=phases,
        basekv=source.base_kv,
        pu=source.pu,
        angle=source.angle_deg,
        frequency=hz,
        Z1=(source.r1_ohm, source.x1_ohm),
        Z0=(source.r1_ohm, source.x1_ohm) if phases == 1 else zero,
        Z2=(source.r1_ohm, source.x1_ohm) if phases == 1 else (r2, x2),
    )


def wire(wire: Wire) -> str:
    """A Wire as WireData."""
    return command(
        f"New WireData.{wire.name}",
        rdc=wire.r_dc_ohm_per_km,
        rac=wire.r_ac_ohm_per_km,
        runits="km",
        gmrac=wire.gmr_m,
        gmrunits="m",
        radius=wire.radius_m,
        radunits="m",
        capradius=wire.radius_m if wire.cap_radius_m is None else wire.cap_radius_m,
    )


def code_phases(code: LineCode | SequenceCode | Geometry) -> int:
    """How many phases a code has."""
    return len(code.r) if isinstance(code, LineCode) else code.phases


def code(code: LineCode | SequenceCode) -> str:
    """A matrix or sequence code as a LineCode."""
    head = f"New LineCode.{code.name}"
    if isinstance(code, LineCode):
        return command(
            head,
            nphases=len(code.r),
            units=code.unit,
            rmatrix=code.r,
            xmatrix=code.x,
            cmatrix=code.c,
        )
    return command(
        head,
        nphases=code.phases,
        units=code.unit,
        r1=code.r1,
        x1=code.x1,
        r0=code.r0,
        x0=code.x0,
        c1=code.c1,
        c0=code.c0,
    )


def geometry(code: Geometry) -> str:
    """A Geometry as a LineGeometry."""
    conductors = zip(code.wires, code.x_m, code.h_m, strict=True)
    return " ".join(
        [
            f"New LineGeometry.{code.name} nconds={len(code.wires)} nphases={code.phases}",
            *(
                f"cond={i} wire={wire} x={text(x)} h={text(h)} units=m"
                for i, (wire, x, h) in enumerate(conductors, start=1)
            ),
            f"reduce={text(code.phases < len(code.wires))}",
        ]
    )


# --- What carries current. ---


def line(line: Line, phases: int, geometry: Geometry | None) -> str:
    """A Line; `phases` and `geometry` are its code's."""
    return command(
        f"New Line.{line.name}",
        bus1=line.bus1,
        bus2=line.bus2,
        phases=phases,
        linecode=None if geometry else line.code,
        geometry=line.code if geometry else None,
        length=line.length,
        units=line.unit,
        rho=geometry.rho_ohm_m if geometry else None,
        earthmodel=geometry.earth_model if geometry else None,
        normamps=line.rating_a,
    )


def switch(switch: Switch) -> Iterator[str]:
    """A Switch as a Line, and the command that opens it."""
    r, x = switch.r_ohm, switch.x_ohm
    if r == 0 and x == 0:
        raise ValueError(
            f"switch {switch.name!r} has no impedance, which OpenDSS needs; set r_ohm to 1e-4 for instance"
        )
    yield command(
        f"New Line.{switch.name}",
        bus1=switch.bus1,
        bus2=switch.bus2,
        phases=len(split_terminal(switch.bus1)[1]),
        switch=True,
        r1=r,
        x1=x,
        r0=r,
        x0=x,
        c1=0.0,
        c0=0.0,
        length=1.0,
        units="none",
        normamps=switch.rating_a,
    )
    if not switch.closed:
        yield f"Open Line.{switch.name} 1"


def transformer(transformer: Transformer) -> str:
    """A Transformer with all of its windings."""
    head = f"New Transformer.{transformer.name} phases={transformer.phases}"
    parts = [f"{head} windings={len(transformer.windings)}"]
    for i, winding in enumerate(transformer.windings, start=1):
        grounded = winding.r_neutral_ohm is not None
        parts.append(
            command(
                f"wdg={i}",
                bus=winding.bus,
                conn=winding.connection,
                kv=winding.kv,
                kva=winding.kva,
                pct_r=winding.r_percent,
                maxtap=winding.max_tap,
                mintap=winding.min_tap,
                numtaps=winding.num_taps,
                tap=winding.tap,
                rneut=winding.r_neutral_ohm if grounded else None,
                xneut=winding.x_neutral_ohm if grounded else None,
            )
        )
    parts.append(
        command(
            f"xscarray={text(transformer.x_percent)}",
            pct_noloadloss=transformer.no_load_loss_percent,
            pct_imag=transformer.magnetizing_percent,
            ppm_antifloat=transformer.antifloat_ppm,
            leadlag=transformer.lead_lag,
            bank=transformer.bank,
        )
    )
    return " ".join(parts)


def capacitor(capacitor: Capacitor, hz: float) -> str:
    """A Capacitor with the states of its steps."""
    uneven = len(set(capacitor.kvar)) > 1
    split = capacitor.connection == "wye" and capacitor.phases in (2, 3)
    kv = capacitor.kv / math.sqrt(3) if split else capacitor.kv
    per_microfarad = 2e-3 * math.pi * hz * kv**2 * capacitor.phases
    return command(
        f"New Capacitor.{capacitor.name}",
        bus1=capacitor.bus1,
        bus2=capacitor.bus2,
        phases=capacitor.phases,
        conn=capacitor.connection,
        kv=capacitor.kv,
        numsteps=len(capacitor.kvar),
        # The engine gives every step the kvar of the first, but each its own microfarads.
        kvar=None if uneven else capacitor.kvar,
        cuf=tuple(kvar / per_microfarad for kvar in capacitor.kvar) if uneven else None,
        r=capacitor.r_ohm or None,
        xl=capacitor.xl_ohm or None,
        states=tuple(map(int, capacitor.closed)),
    )


def reactor(reactor: Reactor) -> str:
    """A Reactor."""
    return command(
        f"New Reactor.{reactor.name}",
        bus1=reactor.bus1,
        bus2=reactor.bus2,
        phases=reactor.phases,
        conn=reactor.connection,
        r=reactor.r_ohm,
        x=reactor.x_ohm,
        rp=reactor.rp_ohm,
    )


def admittance(admittance: Admittance) -> Iterator[str]:
    """One-phase reactors between the nodes, and from each to ground."""
    nodes = [(bus, node) for bus, numbers in map(split_terminal, admittance.terminals) for node in numbers]
    y = np.array(admittance.g) + 1j * np.array(admittance.b)
    if not np.allclose(y, y.T, rtol=0.0, atol=1e-12 * np.abs(y).max()):
        raise ValueError(f"admittance {admittance.name!r} is not symmetric; OpenDSS has no element for it")
    names = sorted({node for node in nodes if node[1]})
    incidence = np.array([[node == name for name in names] for node in nodes], dtype=float)
    nodal = incidence.T @ y @ incidence
    for i, (bus, node) in enumerate(names):
        ends = [(f"{bus}.0", nodal[i].sum(), 0)]
        ends += [(f"{b}.{n}", -nodal[i, j], j + 1) for j, (b, n) in enumerate(names) if j > i]
        for end, value, number in ends:
            if value != 0:
                z = 1 / complex(value)
                yield command(
                    f"New Reactor.{admittance.name}_{i + 1}_{number}",
                    bus1=f"{bus}.{node}",
                    bus2=end,
                    phases=1,
                    r=z.real,
                    x=z.imag,
                )


# --- What injects. ---


def load(load: Load) -> str:
    """A Load."""
    return command(
        f"New Load.{load.name}",
        bus1=load.bus,
        phases=load.phases,
        conn=load.connection,
        model=load.model,
        kv=load.kv,
        kw=load.kw,
        kvar=load.kvar,
        vminpu=load.vmin_pu,
        vmaxpu=load.vmax_pu,
        vlowpu=load.vlow_pu,
        zipv=load.zipv,
        cvrwatts=load.cvr_watts,
        cvrvars=load.cvr_vars,
    )


def generator(generator: Generator) -> str:
    """A Generator."""
    return command(
        f"New Generator.{generator.name}",
        bus1=generator.bus,
        phases=generator.phases,
        conn=generator.connection,
        kv=generator.kv,
        kva=generator.kva,
        kw=generator.kw,
        kvar=generator.kvar,
        model=generator.model,
        vminpu=generator.vmin_pu,
        vmaxpu=generator.vmax_pu,
    )


def _curve(name: str, curve: Matrix) -> str:
    return command(f"New XYCurve.{name}", npts=len(curve[0]), xarray=curve[0], yarray=curve[1])


def pv_system(pv: PVSystem) -> Iterator[str]:
    """A PVSystem and its curves."""
    power = f"{pv.name}_power" if pv.power_curve else None
    efficiency = f"{pv.name}_efficiency" if pv.efficiency_curve else None
    if pv.power_curve:
        yield _curve(f"{pv.name}_power", pv.power_curve)
    if pv.efficiency_curve:
        yield _curve(f"{pv.name}_efficiency", pv.efficiency_curve)
    kvar_max = pv.kva if pv.kvar_max is None else pv.kvar_max
    yield command(
        f"New PVSystem.{pv.name}",
        bus1=pv.bus,
        phases=pv.phases,
        conn=pv.connection,
        kv=pv.kv,
        kva=pv.kva,
        pmpp=pv.pmpp_kw,
        pct_pmpp=pv.pmpp_percent,
        irradiance=pv.irradiance,
        temperature=pv.temperature_c,
        effcurve=efficiency,
        pct_cutin=pv.cut_in_percent,
        pct_cutout=pv.cut_out_percent,
        wattpriority=pv.watt_priority,
        kvarmax=kvar_max,
        kvarmaxabs=kvar_max if pv.kvar_max_abs is None else pv.kvar_max_abs,
        kvar=pv.kvar,
        model=pv.model,
        vminpu=pv.vmin_pu,
        vmaxpu=pv.vmax_pu,
    ) + (f" P-TCurve={power}" if power else "")


def storage(storage: Storage) -> str:
    """A Storage in its present state."""
    idle = -storage.idling_percent / 100 * storage.kw_rated
    idling = abs(storage.kw - idle) <= 1e-12 * storage.kw_rated
    state = "idling" if idling else ("discharging" if storage.kw > 0 else "charging")
    limit = max(storage.kva, abs(storage.kvar))
    return command(
        f"New Storage.{storage.name}",
        bus1=storage.bus,
        phases=storage.phases,
        conn=storage.connection,
        kv=storage.kv,
        kva=storage.kva,
        kwrated=storage.kw_rated,
        kwhrated=storage.kwh_rated,
        kwhstored=storage.kwh_stored,
        pct_reserve=storage.reserve_percent,
        pct_effcharge=storage.charge_efficiency_percent,
        pct_effdischarge=storage.discharge_efficiency_percent,
        pct_idlingkw=storage.idling_percent,
        kvarmax=limit,
        kvarmaxabs=limit,
        state=state,
        kw=None if idling else storage.kw,
        kvar=storage.kvar,
        model=storage.model,
        vminpu=storage.vmin_pu,
        vmaxpu=storage.vmax_pu,
    )


# --- Controls and buses. ---


def regulator(regulator: Regulator) -> str:
    """A Regulator as a RegControl."""
    return command(
        f"New RegControl.{regulator.name}",
        transformer=regulator.transformer,
        winding=regulator.winding,
        vreg=regulator.vreg,
        band=regulator.band,
        ptratio=regulator.pt_ratio,
        ctprim=regulator.ct_primary_a,
        r=regulator.r,
        x=regulator.x,
        ptphase=regulator.pt_phase,
        delay=regulator.delay_s,
        tapdelay=regulator.tap_delay_s,
        maxtapchange=regulator.max_tap_change,
        inversetime=regulator.inverse_time,
        bus=regulator.monitored_bus,
        reversible=regulator.reversible,
        revvreg=regulator.reverse_vreg,
        revband=regulator.reverse_band,
        revr=regulator.reverse_r,
        revx=regulator.reverse_x,
        revdelay=regulator.reverse_delay_s,
        revthreshold=regulator.reverse_threshold_kw,
        revneutral=regulator.reverse_neutral,
        vlimit=regulator.voltage_limit or None,
    )


def capacitor_control(feeder: Feeder, control: CapacitorControl) -> str:
    """A CapacitorControl as a CapControl."""
    lines = {record.name for record in (*feeder.lines, *feeder.switches)}
    kind, _, name = control.element.partition(".")
    if kind == "line" and name not in lines:
        raise ValueError(
            f"capacitor control {control.name!r} watches {control.element}, which is not among the "
            "lines and switches; leave the control out or give it another element"
        )
    return command(
        f"New CapControl.{control.name}",
        capacitor=control.capacitor,
        element=control.element,
        terminal=control.terminal,
        type_=control.kind,
        ptratio=control.pt_ratio,
        ctratio=control.ct_ratio,
        ptphase=control.pt_phase,
        ctphase=control.ct_phase,
        onsetting=control.on,
        offsetting=control.off,
        delay=control.delay_s,
        delayoff=control.delay_off_s,
        deadtime=control.dead_time_s,
        voltoverride=control.voltage_override,
        vmin=control.vmin,
        vmax=control.vmax,
    )


def bus(bus: Bus) -> Iterator[str]:
    """A bus's voltage base and coordinates."""
    yield command("SetkVBase", bus=bus.name, kvln=bus.base_kv)
    if bus.x is not None and bus.y is not None:
        yield command("SetBusXY", bus=bus.name, x=bus.x, y=bus.y)
