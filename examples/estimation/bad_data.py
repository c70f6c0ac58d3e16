"""Statistics of bad-data tests: their thresholds, and what many draws say of them beside theory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincc, ndtr, ndtri

FALSE_ALARM = 0.01  # of each test


def p_value(objective: ArrayLike, freedom: int) -> np.ndarray:
    """Probability that a chi-square number of that many degrees of freedom is larger."""
    return gammaincc(freedom / 2, np.asarray(objective) / 2)


def threshold(count: int) -> float:
    """The largest of `count` standard normal numbers is beyond it with probability FALSE_ALARM (C. Bonferroni)."""
    return -float(ndtri(FALSE_ALARM / (2 * count)))


class Trials(NamedTuple):
    """Draws, each without and with a gross error of `size` standard deviations in the meter `row`; (draws,) each."""

    objective: np.ndarray
    rms: np.ndarray  # (draws, 4) voltage error, pu: usual loads; estimate; with the gross error; suspect removed
    largest: np.ndarray  # (draws, 2) normalised residual of real meters, without and with
    row: np.ndarray
    found: np.ndarray  # the row of the largest residual with the gross error
    spoilt: np.ndarray  # J with the gross error
    shift: np.ndarray  # expected normalised residual of the bad meter
    last_step: np.ndarray


def summary_of_clean(clean: Trials, freedom: int, count: int) -> dict[str, Any]:
    """Voltage errors, the distribution of J against theory, false alarms."""
    p = p_value(clean.objective, freedom)
    n = len(p)
    return {
        "draws": n,
        "degrees_of_freedom": freedom,
        "rms_error_usual_loads_pu": float(np.sqrt(np.mean(clean.rms[:, 0] ** 2))),
        "rms_error_estimate_pu": float(np.sqrt(np.mean(clean.rms[:, 1] ** 2))),
        "objective_mean": float(clean.objective.mean()),
        "objective_std": float(clean.objective.std(ddof=1)),
        "objective_mean_theory": freedom,
        "objective_mean_standard_error": math.sqrt(2 * freedom / n),
        "objective_std_theory": math.sqrt(2 * freedom),
        "chi_square_false_alarms": float((p < FALSE_ALARM).mean()),
        "residual_threshold": threshold(count),
        "residual_false_alarms": float((clean.largest[:, 0] > threshold(count)).mean()),
        "false_alarm_rate_asked": FALSE_ALARM,
        "largest_last_step": float(clean.last_step.max()),
    }


def summary_of_bad(found: Trials, first_flow: int, freedom: int, count: int) -> dict[str, dict[str, float]]:
    """Detection and identification by kind of meter; flows are the rows from `first_flow` on.

    `theory` is the chance that the bad meter's own residual is beyond the threshold.
    """
    limit = threshold(count)
    chance = ndtr(found.shift - limit) + ndtr(-limit - found.shift)
    voltage = found.row < first_flow
    detected = found.largest[:, 1] > limit
    alarm = p_value(found.spoilt, freedom) < FALSE_ALARM
    out = {}
    for name, which in (("voltage", voltage), ("flow", ~voltage)):
        if which.any():
            rms = np.sqrt(np.mean(found.rms[which] ** 2, axis=0))
            out[name] = {
                "draws": int(which.sum()),
                "residual_test": float(detected[which].mean()),
                "theory": float(chance[which].mean()),
                "right_meter": float((detected & (found.found == found.row))[which].mean()),
                "chi_square_test": float(alarm[which].mean()),
                "rms_error_clean_pu": float(rms[1]),
                "rms_error_spoilt_pu": float(rms[2]),
                "rms_error_after_removal_pu": float(rms[3]),
            }
    return out
