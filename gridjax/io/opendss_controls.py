"""The engine's regulator and capacitor controls as records."""

from __future__ import annotations

from gridjax.feeder import CapacitorControl, Regulator
from gridjax.io.opendss_tables import Element, Tables

CAP_KINDS = {
    "voltage": "voltage",
    "kvar": "kvar",
    "current": "current",
    "powerfactor": "pf",
    "pf": "pf",
    "time": "time",
}


def regulator(tables: Tables, element: Element) -> None:
    """Reads a RegControl."""
    data = element.data
    odd = [key for key in ("LDC_Z", "Rev_Z", "Cogen") if data[key]]
    if not data["PTPhase"].isdigit():
        odd.append(f"PTPhase={data['PTPhase']}")
    if data["TapWinding"] != data["Winding"]:
        odd.append(f"TapWinding={data['TapWinding']}")
    if odd:
        tables.note(
            f"{element.full_name} is left out, its tap stays where it is: {', '.join(odd)} has no equal in the tables"
        )
        return
    tables.add(
        Regulator(
            name=element.name,
            transformer=data["Transformer"].lower(),
            winding=data["Winding"],
            vreg=data["VReg"],
            band=data["Band"],
            pt_ratio=data["PTRatio"],
            ct_primary_a=data["CTPrim"],
            r=data["R"],
            x=data["X"],
            pt_phase=int(data["PTPhase"]),
            delay_s=data["Delay"],
            tap_delay_s=data["TapDelay"],
            max_tap_change=data["MaxTapChange"],
            inverse_time=data["InverseTime"],
            monitored_bus=data["Bus"].lower() or None,
            reversible=data["Reversible"],
            reverse_vreg=data["RevVReg"],
            reverse_band=data["RevBand"],
            reverse_r=data["RevR"],
            reverse_x=data["RevX"],
            reverse_delay_s=data["RevDelay"],
            reverse_threshold_kw=data["RevThreshold"],
            reverse_neutral=data["RevNeutral"],
            voltage_limit=data["VLimit"],
        )
    )


def capacitor_control(tables: Tables, element: Element) -> None:
    """Reads a CapControl."""
    data = element.data
    odd = [key for key in ("VBus", "UserModel", "ControlSignal") if data[key]]
    odd += [f"{key}={data[key]}" for key in ("PTPhase", "CTPhase") if not data[key].isdigit()]
    if data["Type"].lower() not in CAP_KINDS:
        odd.append(f"Type={data['Type']}")
    if odd:
        tables.note(
            f"{element.full_name} is left out, its capacitor stays as it is: {', '.join(odd)} has "
            "no equal in the tables"
        )
        return
    tables.add(
        CapacitorControl(
            name=element.name,
            capacitor=data["Capacitor"].lower(),
            kind=CAP_KINDS[data["Type"].lower()],
            element=data["Element"].lower(),
            terminal=data["Terminal"],
            on=data["OnSetting"],
            off=data["OffSetting"],
            pt_ratio=data["PTRatio"],
            ct_ratio=data["CTRatio"],
            pt_phase=int(data["PTPhase"]),
            ct_phase=int(data["CTPhase"]),
            delay_s=data["Delay"],
            delay_off_s=data["DelayOff"],
            dead_time_s=data["DeadTime"],
            voltage_override=data["VoltOverride"],
            vmin=data["VMin"],
            vmax=data["VMax"],
        )
    )
