"""What a control centre looks at: how voltages and devices are spread over the feeder, not each of them.

    voltages of a phase, sorted:  v_(round(q (n - 1))),   q = 0, 0.05, 0.25, 0.5, 0.75, 0.95, 1
    devices of a kind:            mean x,   sqrt(mean (x - mean x)^2)

Hundreds of entries become a few tens, whatever the feeder's size; networks that see these need fewer data and a
fraction of the time. Where devices stand, and which one is short, is given away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.der_control import DerControl
from gridjax.env.environment import Environment, Wrapped

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
VOLTAGE = "voltage "


@dataclass(frozen=True)
class Summary(Wrapped):
    """An environment that is observed by quantiles and means; made by `summary`.

    Attributes:
      env: the environment; all but the observation is its own.
      voltages: entries of its observation, a group for each phase.
      devices: likewise, a group for each kind of device and each thing that is known of it.
      rest: entries that stay as they are.
      names: of the entries.
    """

    voltages: tuple[tuple[int, ...], ...]
    devices: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def base(self) -> Environment:
        """That of the environment."""
        return self.env.base

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Quantiles of voltages, means and deviations of devices, and what stays as it is."""
        return self.names

    def observe(self, state: Any, params: Any) -> jax.Array:
        """As the module's text says, (observation_size,)."""
        whole = self.env.observe(state, params)
        parts = []
        for group in self.voltages:
            ranks = np.round(np.array(QUANTILES) * (len(group) - 1)).astype(int)
            parts.append(jnp.sort(whole[np.array(group)])[ranks])
        for group in self.devices:
            x = whole[np.array(group)]
            parts.append(jnp.stack([x.mean(), x.std()]))
        return jnp.concatenate([*parts, whole[np.array(self.rest, int)]])


def summary(env: Environment) -> Summary:
    """The environment, observed by quantiles of its voltages; in DER control also by means of its devices.

    Devices that are few and set one by one (regulators, capacitors and batteries of Volt-VAR control) stay as they are.

    Args:
      env: whose observations tell voltages, as "voltage 650.1"; a `gridjax.env.broadcast.broadcast` is taken too. Data
        sets collected in it have the short observations. By name: `gridjax.env.tasks.make(..., summary=True)`.

    Raises:
      ValueError: an environment whose observations tell no voltages.
    """
    inner = env.inner
    kinds = (
        {"inverters": inner.inverters, "batteries": inner.batteries, "cars": inner.cars}
        if isinstance(inner, DerControl)
        else {}
    )
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    voltages: dict[str, list[int]] = {}
    devices: dict[tuple[str, str], list[int]] = {}
    rest = []
    for k, name in enumerate(env.observation_names):
        what, device = next(((name[: -len(d)].strip(), d) for d in kind_of if name.endswith(f" {d}")), (name, ""))
        if name.startswith(VOLTAGE):
            voltages.setdefault(name.rpartition(".")[2], []).append(k)
        elif device:
            devices.setdefault((what, kind_of[device]), []).append(k)
        else:
            rest.append(k)
    if not voltages:
        raise ValueError(f"{type(inner).__name__} observes no voltages that could be summed up")
    names = [f"{VOLTAGE}of phase {phase}, quantile {q:g}" for phase in voltages for q in QUANTILES]
    names += [f"{what} of {kind}, {of}" for what, kind in devices for of in ("mean", "deviation")]
    names += [env.observation_names[k] for k in rest]
    groups = (tuple(map(tuple, found.values())) for found in (voltages, devices))
    return Summary(env.horizon, env.failure_penalty, env, *groups, rest=tuple(rest), names=tuple(names))
