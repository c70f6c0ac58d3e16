"""Environments by name, on shipped feeders and synthetic days.

A name is `TASK-FEEDER-v0`: "VoltVar-ieee123-v0". The days are drawn once from a seed (`gridjax.days`), so many as
`days` says, spread evenly over the year; those of another seed are days that were never seen.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax import feeders
from gridjax.days import region, shapes_each
from gridjax.env.der_tasks import der_control, equip
from gridjax.env.environment import Environment
from gridjax.env.microgrid_tasks import island_feeder, microgrid
from gridjax.env.restoration_tasks import restoration, switched
from gridjax.env.shield import shield as shielded
from gridjax.env.summary import summary as summed_up
from gridjax.env.volt_var_tasks import powergym, volt_var
from gridjax.feeder import Feeder

FEEDERS = {
    "VoltVar": ("ieee13", "ieee34", "ieee123", "ieee8500"),
    "Powergym": ("ieee13", "ieee34", "ieee123", "ieee8500"),
    "DerControl": ("ieee13", "ieee34", "ieee37", "ieee123", "european_lv", "ieee8500"),
    "Microgrid": ("ieee13", "ieee34", "ieee123", "european_lv"),
    "Restoration": ("baran_wu33", "ieee123"),
}
HOURS = {"Restoration": 0.5}  # of a step, where it is not one
SIZES = {  # of DER control, where one device for every other or eighth load would be fewer than a hundred
    "ieee123": {"fleet": 80, "batteries": 20, "cars": 20},
    "european_lv": {"fleet": 55, "batteries": 25, "cars": 25},
}
VERSION = "v0"


def names() -> tuple[str, ...]:
    """All names that `make` knows."""
    return tuple(f"{task}-{feeder}-{VERSION}" for task, known in FEEDERS.items() for feeder in known)


def make(
    name: str,
    *,
    seed: int = 0,
    days: int = 100,
    hours: float | None = None,
    summary: bool = False,
    shield: bool = False,
    **options: Any,
) -> tuple[Environment, Any]:
    """An environment and its parameters.

    Args:
      name: one of `names()`.
      seed: of the days.
      days: how many different days episodes are drawn from.
      hours: length of a step, a whole number of which make a day; None is one, for "Restoration" a half.
      summary: whether it is observed by quantiles of voltages and means of devices (`gridjax.env.summary`).
      shield: whether actions that would violate a constraint are corrected (`gridjax.env.shield`).
      **options: of the task: for "VoltVar" those of `gridjax.env.volt_var_tasks.volt_var`, for "Powergym" those of
        `gridjax.env.volt_var_tasks.powergym`, for "DerControl" those of `gridjax.env.der_tasks.der_control`, for
        "Microgrid" those of `gridjax.env.microgrid_tasks.microgrid`, for "Restoration" those of
        `gridjax.env.restoration_tasks.restoration`.

    Raises:
      ValueError: an unknown name, or numbers that make no sense.
    """
    if name not in names():
        raise ValueError(f"no environment {name!r}: choose one of {', '.join(names())}")
    hours = HOURS.get(name.split("-")[0], 1.0) if hours is None else hours
    steps = round(24 / hours)
    if days < 1 or steps < 1 or abs(steps * hours - 24) > 1e-9:
        raise ValueError(f"{days} days of steps of {hours:g} h: take at least one day, and steps that divide 24 h")
    env, params = _whole(name, seed, days, hours, steps, options)
    env = shielded(env) if shield else env
    return (summed_up(env) if summary else env), params


def _whole(
    name: str, seed: int, days: int, hours: float, steps: int, options: dict[str, Any]
) -> tuple[Environment, Any]:
    """The environment, observed as it is."""
    task, feeder_name, _ = name.split("-")
    feeder = feeders.load(feeder_name)
    if task == "DerControl":
        options = SIZES.get(feeder_name, {}) | options
        return der_control(feeder, jax.random.key(seed), days=days, hours=hours, **options)
    if task == "Microgrid":
        return microgrid(feeder, jax.random.key(seed), days=days, hours=hours, **options)
    multiplier = multipliers(feeder, jax.random.key(seed), days, steps)
    if task == "Restoration":
        return restoration(feeder, np.asarray(multiplier), hours=hours, **options)
    if task == "Powergym":
        if hours != 1.0:
            raise ValueError("powergym's steps are hours: leave `hours` at 1")
        return powergym(feeder_name, multiplier, **options)
    return volt_var(feeder, multiplier, hours=hours, **options)


def feeder_of(name: str, **options: Any) -> Feeder:
    """The feeder of an environment with the devices that its options give it, for policies and pictures.

    Args:
      name: one of `names()`.
      **options: those given to `make`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in names():
        raise ValueError(f"no environment {name!r}: choose one of {', '.join(names())}")
    task, feeder_name, _ = name.split("-")
    feeder = feeders.load(feeder_name)
    if task == "Microgrid":
        return island_feeder(feeder, **{k: v for k, v in options.items() if k in ("forming", "diesels")})
    if task == "Restoration":
        return switched(feeder, **{k: v for k, v in options.items() if k == "neighbours"})
    if task != "DerControl":
        return feeder
    devices = ("fleet", "batteries", "penetration")
    options = SIZES.get(feeder_name, {}) | options
    return equip(feeder, **{key: value for key, value in options.items() if key in devices})


def multipliers(feeder: Feeder, key: jax.Array, days: int, steps: int) -> jax.Array:
    """Factors on the loads' rated powers over days spread evenly over the year, (days, steps, loads)."""
    place = region(feeder.replace(pv_systems=(), storages=()))
    numbers = jnp.asarray(np.linspace(0, 365, days, endpoint=False).astype(np.int32))
    column = np.asarray(place.kinds.load)
    return shapes_each(key, place, numbers, steps).p[:, :, column]
