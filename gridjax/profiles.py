"""What is asked of a feeder over time, step by step, as pytrees whose leading axis is time.

Two forms, which `at` turns into the operating point of one step alike:

    Profiles    P[t, l] in kW, for every load and every generation entry: anything, at the cost of its memory
    Shapes      P[t, l] = P_nominal[l] p[t, kind(l)]: a few shapes that many loads share, so that a year of
                quarter-hours for thousands of loads is some megabytes

A slice of either along axis 0 is one step, so both are what a `jax.lax.scan` over time walks along; a batch of
scenarios has its axis before that of time, and is met by `jax.vmap` outside the scan.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.grid import OperatingPoint

CONSTANT = -1  # the kind of what has no shape


@flax.struct.dataclass
class Profiles:
    """Power of every load and generation entry at every step, in the order of `OperatingPoint`.

    Attributes:
      load_kw, load_kvar: (steps, loads) positive when consumed.
      generation_kw, generation_kvar: (steps, generators) positive when produced; generators, PV systems, storages.
      hour: (steps,) the time each step stands for, hours since the first midnight. `gridjax.days` puts it in the
        middle of the step, `read_load_shapes` at its end, which is when OpenDSS solves it; other readers take the
        file's.
      source_pu: (steps, sources) EMF of each source; None leaves the point's.
    """

    load_kw: jax.Array
    load_kvar: jax.Array
    generation_kw: jax.Array
    generation_kvar: jax.Array
    hour: jax.Array
    source_pu: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Which column of `Shapes` each load and generation entry follows; `CONSTANT` (-1) stays as the point has it.

    Attributes:
      load: one column number for each load.
      generation: one for each generation entry.
      actual: for each column, whether it holds kW and kvar themselves, not factors on the nominal power.
    """

    load: tuple[int, ...]
    generation: tuple[int, ...]
    actual: tuple[bool, ...]

    def __post_init__(self) -> None:
        columns = range(CONSTANT, len(self.actual))
        for what, numbers in (("load", self.load), ("generation", self.generation)):
            for i, number in enumerate(numbers):
                if number not in columns:
                    raise ValueError(
                        f"{what} {i} follows shape {number}, but there are {len(self.actual)} shapes: "
                        f"give it one of 0 to {len(self.actual) - 1}, or -1 for none"
                    )


@flax.struct.dataclass
class Shapes:
    """A few shapes that loads and generation entries share.

    Attributes:
      p, q: (steps, kinds) factors on the operating point's active and reactive powers, or kW and kvar where
        `kinds.actual`.
      hour: (steps,) as in `Profiles`.
      source_pu: (steps, sources) EMF of each source; None leaves the point's.
      kinds: who follows which; static, the same for all steps and scenarios.
    """

    p: jax.Array
    q: jax.Array
    hour: jax.Array
    source_pu: jax.Array | None = None
    kinds: Kinds = flax.struct.field(pytree_node=False, default=Kinds((), (), ()))


Series = TypeVar("Series", Profiles, Shapes)


def at(point: OperatingPoint, profiles: Profiles | Shapes, t: jax.Array | int | None = None) -> OperatingPoint:
    """The operating point of one step; taps and capacitors are the point's.

    Args:
      point: gives what the profiles do not: taps, capacitor steps, and with `Shapes` the nominal powers.
      profiles: all steps, or one of them (a slice along axis 0).
      t: the step's number, which may be traced; None if `profiles` is one step already.

    Returns:
      The point with the step's powers (and source voltages, if the profiles have them).
    """
    step = profiles if t is None else jax.tree.map(lambda a: a[t], profiles)
    if isinstance(step, Shapes):
        load_kw, load_kvar = _follow(step, step.kinds.load, point.load_kw, point.load_kvar)
        generation_kw, generation_kvar = _follow(
            step, step.kinds.generation, point.generation_kw, point.generation_kvar
        )
    else:
        load_kw, load_kvar = step.load_kw, step.load_kvar
        generation_kw, generation_kvar = step.generation_kw, step.generation_kvar
    return dataclasses.replace(
        point,
        load_kw=load_kw,
        load_kvar=load_kvar,
        generation_kw=generation_kw,
        generation_kvar=generation_kvar,
        source_pu=point.source_pu if step.source_pu is None else step.source_pu,
    )


def _follow(step: Shapes, kind: tuple[int, ...], kw: jax.Array, kvar: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Powers of rows that follow shapes `kind`, from their nominal powers."""
    if len(kind) != kw.shape[-1]:
        raise ValueError(f"shapes for {len(kind)} rows, but the operating point has {kw.shape[-1]}: they must agree")
    if not len(step.kinds.actual):
        return kw, kvar
    number = np.asarray(kind, int)
    actual = np.asarray(step.kinds.actual, bool)[number] & (number >= 0)
    constant = number < 0
    out = []
    for shape, nominal in ((step.p, kw), (step.q, kvar)):
        value = shape[np.maximum(number, 0)]
        out.append(jnp.where(constant, nominal, jnp.where(actual, value, nominal * value)))
    return out[0], out[1]


def steps(profiles: Profiles | Shapes) -> int:
    """How many steps there are."""
    return profiles.hour.shape[-1]


def expand(point: OperatingPoint, shapes: Shapes) -> Profiles:
    """The same as `Profiles`: every load and generation entry at every step."""
    points = jax.vmap(lambda step: at(point, step))(shapes)
    return Profiles(
        load_kw=points.load_kw,
        load_kvar=points.load_kvar,
        generation_kw=points.generation_kw,
        generation_kvar=points.generation_kvar,
        hour=shapes.hour,
        source_pu=None if shapes.source_pu is None else points.source_pu,
    )


@jax.jit
def expand_each(point: OperatingPoint, shapes: Shapes) -> Profiles:
    """As `expand`, of shapes with a leading axis, which the result has too."""
    return jax.vmap(expand, in_axes=(None, 0))(point, shapes)


def constant(point: OperatingPoint, hour: jax.Array) -> Profiles:
    """Profiles that stay at the point's powers, for the hours given, (steps,)."""

    def rows(a):
        return jnp.broadcast_to(a, (hour.shape[0], *a.shape))

    return Profiles(
        load_kw=rows(point.load_kw),
        load_kvar=rows(point.load_kvar),
        generation_kw=rows(point.generation_kw),
        generation_kvar=rows(point.generation_kvar),
        hour=hour,
    )


def window(profiles: Series, start: int, stop: int) -> Series:
    """The steps from `start` up to, not including, `stop`."""
    return jax.tree.map(lambda a: a[start:stop], profiles)
