"""The numbers of IEEE 1547-2018 (with amendment 1547a-2020), as plain Python: default settings and required ranges.

Powers are in per unit: active power of the rated active power, reactive power of the rated apparent power, positive
when injected. Voltages are in per unit of the nominal voltage, frequencies in Hz of a 60 Hz system, times in seconds.

- reactive capability: clause 5.2, table 7; volt-var: 5.3.3, table 8; watt-var: 5.3.4, table 9
- volt-watt: 5.4.2, table 10; frequency droop: 6.5.2.7, tables 22 to 24
- enter service: 4.10.2 and 4.10.3, table 4
- mandatory voltage tripping: 6.4.1, tables 11 to 13; voltage ride-through: 6.4.2, tables 14 to 16
- mandatory frequency tripping: 6.5.1, table 18; frequency ride-through: 6.5.2, table 19
- response times: the time to 90 % of the final change after a step (clause 3.1, open loop response time)
"""

from __future__ import annotations

import math
from typing import NamedTuple

NOMINAL_HZ = 60.0
UNLIMITED = math.inf

# Clause 5.2: below 5 % of the rated active power nothing is required, from 20 % on all of it, in proportion between.
LEAST_POWER, FULL_POWER = 0.05, 0.2


class Reactive(NamedTuple):
    """What a normal-performance category asks for; curves are tuples of abscissae and of ordinates."""

    most_injected: float
    most_absorbed: float
    volt_var: tuple[tuple[float, ...], tuple[float, ...]]
    volt_var_seconds: float
    watt_var: tuple[tuple[float, ...], tuple[float, ...]]


REACTIVE = {
    "A": Reactive(
        most_injected=0.44,
        most_absorbed=0.25,
        volt_var=((0.90, 1.00, 1.00, 1.10), (0.25, 0.0, 0.0, -0.25)),
        volt_var_seconds=10.0,
        watt_var=((-1.0, -0.5, -0.2, 0.2, 0.5, 1.0), (0.44, 0.0, 0.0, 0.0, 0.0, -0.25)),
    ),
    "B": Reactive(
        most_injected=0.44,
        most_absorbed=0.44,
        volt_var=((0.92, 0.98, 1.02, 1.08), (0.44, 0.0, 0.0, -0.44)),
        volt_var_seconds=5.0,
        watt_var=((-1.0, -0.5, -0.2, 0.2, 0.5, 1.0), (0.44, 0.0, 0.0, 0.0, 0.0, -0.44)),
    ),
}

VOLT_WATT = ((1.06, 1.10), (1.0, 0.0))
VOLT_WATT_SECONDS = 10.0
POWER_FACTOR_SECONDS = WATT_VAR_SECONDS = CONSTANT_REACTIVE_SECONDS = 10.0

DEAD_BAND_HZ = 0.036
DROOP = 0.05
DROOP_SECONDS = 5.0


class EnterService(NamedTuple):
    """Between these limits for `delay_s`, a unit may enter service; then it ramps up over `ramp_s`."""

    low_pu: float = 0.917
    high_pu: float = 1.05
    low_hz: float = 59.5
    high_hz: float = 60.1
    delay_s: float = 300.0
    ramp_s: float = 300.0


class Trip(NamedTuple):
    """Mandatory tripping: beyond a threshold for longer than its clearing time."""

    over2_pu: float
    over2_s: float
    over1_pu: float
    over1_s: float
    under1_pu: float
    under1_s: float
    under2_pu: float
    under2_s: float
    over2_hz: float = 62.0
    over2_hz_s: float = 0.16
    over1_hz: float = 61.2
    over1_hz_s: float = 300.0
    under1_hz: float = 58.5
    under1_hz_s: float = 300.0
    under2_hz: float = 56.5
    under2_hz_s: float = 0.16


TRIP = {
    "I": Trip(1.20, 0.16, 1.10, 2.0, 0.70, 2.0, 0.45, 0.16),
    "II": Trip(1.20, 0.16, 1.10, 2.0, 0.70, 10.0, 0.45, 0.16),
    "III": Trip(1.20, 0.16, 1.10, 13.0, 0.88, 21.0, 0.50, 2.0),
}

CONTINUOUS_PU = (0.88, 1.10)
CONTINUOUS_HZ = (58.8, 61.2)
MANDATORY_HZ = (57.0, 61.8)
MANDATORY_HZ_SECONDS = 299.0
CEASE_SECONDS = 0.16  # the longest response to an order to cease
CESSATION_SECONDS = 0.083

# What a unit does in a region of ride-through.
MANDATORY, PERMISSIVE, CESSATION, CEASE = "mandatory", "permissive", "momentary cessation", "cease to energize"


class Region(NamedTuple):
    """From `low_pu` up to `high_pu`: what is asked for, and for how long at least: `seconds + slope (v - low_pu)`.

    An under-voltage region holds its lower end, an over-voltage one its upper end.
    """

    low_pu: float
    high_pu: float
    mode: str
    seconds: float
    slope: float = 0.0


_OVER = (
    Region(1.20, UNLIMITED, CEASE, 0.0),
    Region(1.175, 1.20, PERMISSIVE, 0.2),
    Region(1.15, 1.175, PERMISSIVE, 0.5),
    Region(1.10, 1.15, PERMISSIVE, 1.0),
)
RIDE_THROUGH = {
    "I": (
        *_OVER,
        Region(0.70, 0.88, MANDATORY, 0.7, 4.0),
        Region(0.50, 0.70, PERMISSIVE, 0.16),
        Region(0.0, 0.50, CEASE, 0.0),
    ),
    "II": (
        *_OVER,
        Region(0.65, 0.88, MANDATORY, 3.0, 8.7),
        Region(0.45, 0.65, PERMISSIVE, 0.32),
        Region(0.30, 0.45, PERMISSIVE, 0.16),
        Region(0.0, 0.30, CEASE, 0.0),
    ),
    "III": (
        Region(1.20, UNLIMITED, CEASE, 0.0),
        Region(1.10, 1.20, CESSATION, 12.0),
        Region(0.70, 0.88, MANDATORY, 20.0),
        Region(0.50, 0.70, MANDATORY, 10.0),
        Region(0.0, 0.50, CESSATION, 1.0),
    ),
}
