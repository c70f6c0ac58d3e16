"""EPRI's OpenDER beside gridjax: random inverters in both."""

import dataclasses
import logging

import numpy as np
from opender import DER, DER_PV

from gridjax.control.settings import Rule, settings
from gridjax.feeder import Bus, Feeder, PVSystem, Source

logging.getLogger().setLevel(logging.CRITICAL)  # it warns of ratings that the tests choose on purpose
KV = 0.24
MODES = {
    "volt-var": "QV_MODE_ENABLE",
    "watt-var": "QP_MODE_ENABLE",
    "constant power factor": "CONST_PF_MODE_ENABLE",
    "constant reactive power": "CONST_Q_MODE_ENABLE",
}


def feeder(kvas, kws):
    """A bus full of one-phase photovoltaic systems."""
    bus = Bus("b", KV, (1,))
    ratings = enumerate(zip(kvas, kws, strict=True))
    systems = [PVSystem(f"pv{i}", "b.1.0", 1, "wye", KV, float(kva), float(kw)) for i, (kva, kw) in ratings]
    return Feeder("f", 60.0, (bus,), (Source("s", "b.1", KV),), pv_systems=tuple(systems))


def increasing(rng, low, high, count, gap):
    """Numbers at least `gap` apart."""
    free = high - low - gap * (count - 1)
    return tuple((np.sort(rng.uniform(0, free, count)) + low + gap * np.arange(count)).tolist())


def random_rule(rng, mode, **changes):
    most = rng.uniform(0.44, 0.8, 2)
    q = rng.uniform(0.05, 0.6, 4)
    rule = Rule(
        mode=mode,
        category=str(rng.choice(["A", "B"])),
        volt_var=(increasing(rng, 0.88, 1.1, 4, 0.01), (q[0], q[1] / 10, -q[2] / 10, -q[3])),
        volt_watt_curve=(increasing(rng, 1.03, 1.1, 2, 0.005), (1.0, float(rng.uniform(0, 0.5)))),
        watt_var=((-1.0, -0.5, -0.2, *increasing(rng, 0.1, 1.0, 3, 0.1)), (0.3, 0.0, 0.0, q[0] / 4, -q[1] / 4, -q[3])),
        power_factor=float(rng.choice([-1, 1]) * rng.uniform(0.7, 1.0)),
        most_injected=float(most[0]),
        most_absorbed=float(most[1]),
        reduced_at_low_power=bool(rng.random() < 0.5),
        seconds=tuple(rng.uniform(2, 20, 3).tolist()),
        droop=tuple(rng.uniform(0.02, 0.05, 2).tolist()),
        dead_band_hz=tuple(rng.uniform(0.017, 0.5, 2).tolist()),
        least_power=float(rng.uniform(0, 0.2)),
    )
    return dataclasses.replace(rule, **changes)


def theirs(rule, kva, kw, asked=0.0, category="CAT_III", **changes):
    """The same inverter in OpenDER; `asked` is its reactive set-point per unit of kva."""
    v, q = rule.volt_var
    pv, pp = rule.volt_watt_curve
    wp, wq = rule.watt_var
    # The categories come first: setting them sets the defaults of everything else.
    names = {"NP_NORMAL_OP_CAT": "CAT_" + rule.category, "NP_ABNORMAL_OP_CAT": category}
    names |= {f"QV_CURVE_V{i + 1}": v[i] for i in range(4)} | {f"QV_CURVE_Q{i + 1}": q[i] for i in range(4)}
    for i, side in enumerate(("3_LOAD", "2_LOAD", "1_LOAD", "1_GEN", "2_GEN", "3_GEN")):
        names |= {f"QP_CURVE_P{side}": wp[i], f"QP_CURVE_Q{side}": wq[i]}
    names |= {
        "NP_PHASE": "SINGLE", "NP_AC_V_NOM": 1e3 * KV, "NP_VA_MAX": 1e3 * kva, "NP_P_MAX": 1e3 * kw,
        "NP_APPARENT_POWER_CHARGE_MAX": 1e3 * kva, "NP_P_MAX_CHARGE": 1e3 * kw,
        "PV_MODE_ENABLE": rule.volt_watt, "PF_MODE_ENABLE": rule.frequency_watt,
        "PV_CURVE_V1": pv[0], "PV_CURVE_V2": pv[1], "PV_CURVE_P1": pp[0], "PV_CURVE_P2": pp[1],
        "CONST_PF": abs(rule.power_factor), "CONST_PF_EXCITATION": "INJ" if rule.power_factor > 0 else "ABS",
        "CONST_Q": asked, "NP_P_MIN_PU": rule.least_power,
        "PF_KOF": rule.droop[0], "PF_KUF": rule.droop[1],
        "PF_DBOF": rule.dead_band_hz[0], "PF_DBUF": rule.dead_band_hz[1],
        "QV_OLRT": rule.seconds[0], "QP_RT": rule.seconds[0], "CONST_PF_RT": rule.seconds[0],
        "CONST_Q_RT": rule.seconds[0], "PV_OLRT": rule.seconds[1], "PF_OLRT": rule.seconds[2],
        "NP_PRIO_OUTSIDE_MIN_Q_REQ": "ACTIVE" if rule.priority == "minimum" else "REACTIVE",
        "AP_LIMIT_ENABLE": rule.most_power < 1, "AP_LIMIT": rule.most_power, "NP_MODE_TRANSITION_TIME": 0.001,
        MODES[rule.mode]: True,
    }  # fmt: skip
    unit = DER_PV(**{**names, **changes})
    # The capability is laid down when the ratings are read: it has to be told of those that come afterwards.
    share = [0.0, 0.0, 0.25, 1.0, 1.0] if rule.reduced_at_low_power else [1.0] * 5
    at = [0.0, 0.04999, 0.05, 0.2, 1.0]
    unit.der_file.NP_Q_CAPABILITY_BY_P_CURVE = {
        "P_Q_INJ_PU": at, "Q_MAX_INJ_PU": [rule.most_injected * x for x in share],
        "P_Q_ABS_PU": at, "Q_MAX_ABS_PU": [rule.most_absorbed * x for x in share],
    }  # fmt: skip
    return unit


def snapshot(unit, u, available, f_hz=60.0):
    """P per unit of the rated power and Q per unit of kva after all response times; `available` as P."""
    DER.t_s = 1e5
    unit.update_der_input(v_pu=float(u), p_dc_pu=float(available), f=float(f_hz))
    p, q = unit.run()
    return p / unit.der_file.NP_P_MAX, q / unit.der_file.NP_VA_MAX


def random_fleet(seed, count, mode, rated=0.8, **changes):
    """Ratings, rules and settings of `count` inverters; `rated` is the least kW over kVA."""
    rng = np.random.default_rng(seed)
    kvas = rng.uniform(5, 500, count)
    kws = kvas * rng.uniform(rated, 1.0, count)
    rules = [random_rule(rng, mode, **changes) for _ in range(count)]
    named = {f"pv{i}": rule for i, rule in enumerate(rules)}
    return rng, kvas, kws, rules, settings(feeder(kvas, kws), named)
