"""What each device knows and does, worked out from the observation and the action of the whole feeder.

Logged data hold observations x of whole feeders. A `DeviceView` is the static side of an environment's
`observe_devices` and `from_devices`: which entries of x make a device's features, and which of its numbers become which
entries of the action. With v_d the mean of the voltages at device d's terminal and N(d) its neighbours,

    features_d = [kind of d, v_d, mean v_N(d), min v_N(d), max v_N(d), own_d, common],
    own = gain x + shift,    common = x, sin(gain x) or cos(gain x)

With the feeder it has the graph too: buses with up to three phases, and the branches between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.der_control import DerControl
from gridjax.env.environment import Environment
from gridjax.env.microgrid import Microgrid
from gridjax.env.volt_var import VoltVar
from gridjax.feeder import Feeder, split_terminal
from gridjax.graph import to_networkx

Reading = tuple[int, float, float]  # entry of the observation (-1: none), gain, shift
Wave = tuple[int, float, str]  # entry of the observation, gain, and "" (as it is), "sine" or "cosine"
NOTHING: Reading = (-1, 0.0, 0.0)
PHASES = 3
VOLTAGES = 4  # features: own, and mean, lowest and highest of the neighbours


@dataclass(frozen=True)
class Buses:
    """The feeder as a graph; hashable.

    Attributes:
      voltage: (buses, 3) the observation's entry of each phase's voltage, -1 where a bus lacks the phase.
      edges: buses of each closed branch, the one nearer to the source first; in both orders where both are as near.
      device: (devices,) the bus of each device's terminal.
    """

    voltage: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int], ...]
    device: tuple[int, ...]


@dataclass(frozen=True)
class DeviceView:
    """Entries of a feeder's observation and action by device; hashable. Make one with `device_view`.

    Attributes:
      names: of the devices.
      kind: (devices,) the number of each one's kind.
      kinds: how many kinds the environment has, whether this feeder has them all or not.
      voltage: (devices, 3) entries of the voltages at each one's terminal.
      neighbour: (devices, neighbours) the nearest devices.
      own: (devices, columns) readings.
      common: readings that all share.
      numbers: of each device's action.
      action: (action_size,) which of the numbers (devices * numbers) each entry of the action is; -1 where no device
        has it, and it is left at 0.
      buses: the graph, where the feeder was given.
    """

    names: tuple[str, ...]
    kind: tuple[int, ...]
    kinds: int
    voltage: tuple[tuple[int, ...], ...]
    neighbour: tuple[tuple[int, ...], ...]
    own: tuple[tuple[Reading, ...], ...]
    common: tuple[Wave, ...]
    numbers: int
    action: tuple[int, ...]
    buses: Buses | None = None

    @property
    def devices(self) -> int:
        """How many."""
        return len(self.names)

    @property
    def feature_size(self) -> int:
        """Features of a device; the same for all feeders of an environment."""
        return self.kinds + VOLTAGES + len(self.own[0]) + len(self.common)

    def features(self, observation: jax.Array) -> jax.Array:
        """(..., devices, feature_size) of observations (..., observation_size), as `observe_devices` has them."""
        dtype, lead = observation.dtype, observation.shape[:-1]
        kinds = _row(np.eye(self.kinds)[list(self.kind)], dtype, len(lead))
        own = jnp.mean(observation[..., np.array(self.voltage)], axis=-1)
        near = own[..., np.array(self.neighbour)]
        columns = jnp.stack([own, near.mean(axis=-1), near.min(axis=-1), near.max(axis=-1)], axis=-1)
        entry, gain, shift = np.moveaxis(np.array(self.own, float).reshape(self.devices, -1, 3), -1, 0)
        x = observation[..., np.maximum(entry, 0).astype(int)]
        known = jnp.where(_row(entry >= 0, bool, len(lead)), x * _row(gain, dtype, len(lead)), 0.0)
        known = known + _row(shift, dtype, len(lead))
        shared = jnp.stack([_wave(observation[..., k], gain, wave) for k, gain, wave in self.common], axis=-1)
        wide = (*lead, self.devices)
        kinds = jnp.broadcast_to(kinds, (*wide, self.kinds))
        shared = jnp.broadcast_to(shared[..., None, :], (*wide, shared.shape[-1]))
        return jnp.concatenate([kinds, columns, known, shared], axis=-1)

    def to_action(self, numbers: jax.Array) -> jax.Array:
        """Entries of the action (..., action_size, width) from the devices' numbers (..., devices * numbers, width)."""
        return _placed(numbers, self.action)

    def of_action(self, entries: jax.Array) -> jax.Array:
        """The devices' numbers (..., devices * numbers, width) from entries of the action (..., action_size, width).

        Numbers that mean nothing (a battery's second one) are 0.
        """
        place = np.full(self.devices * self.numbers, -1)
        for entry, number in enumerate(self.action):
            if number >= 0:
                place[number] = entry
        return _placed(entries, tuple(place.tolist()))


def device_view(env: Environment, params: Any, feeder: Feeder | None = None) -> DeviceView:
    """The view of an environment's devices.

    Args:
      env: of Volt-VAR control (clean mode), DER control or a microgrid.
      params: its parameters.
      feeder: the environment's feeder (`gridjax.env.tasks.feeder_of`) adds the graph; None leaves it out.

    Raises:
      ValueError: an environment whose observation does not tell what its devices know, or a feeder with other nodes.
    """
    if env.base.observation_names == env.observation_names:  # of a shield, say
        env = env.base
    if isinstance(env, VoltVar):
        parts = _volt_var(env, params)
    elif isinstance(env, DerControl):
        parts = _der_control(env)
    elif isinstance(env, Microgrid):
        parts = _microgrid(env)
    else:
        raise ValueError(
            f"{type(env).__name__}: its whole-feeder observation does not tell what each device knows (in restoration "
            'which switches may be closed follows from the topology): take the body "mlp"'
        )
    place = {name: k for k, name in enumerate(env.observation_names)}
    entry = np.array([place[f"voltage {name}"] for name in env.nodes])  # in the observation's order
    order = np.asarray(params.node_order) if isinstance(env, VoltVar) else np.arange(len(entry))
    by_node = np.empty_like(entry)
    by_node[order] = entry
    terminal = np.asarray(params.place)
    view = DeviceView(
        voltage=_tuples(by_node[terminal]), neighbour=_tuples(np.asarray(params.neighbour)), **parts
    )  # fmt: skip
    if feeder is None:
        return view
    return DeviceView(**{**vars(view), "buses": _buses(feeder, env, by_node, terminal[:, 0])})


def _volt_var(env: VoltVar, params: Any) -> dict[str, Any]:
    if env.as_powergym:
        raise ValueError(
            "powergym's mode: its observation has neither time nor load level, which its devices know: take the clean "
            'task, or the body "mlp"'
        )
    at = {name: k for k, name in enumerate(env.observation_names)}
    low, step = np.asarray(params.tap_low), np.asarray(params.tap_step)
    own: list[tuple[Reading, ...]] = [
        ((at[f"capacitor {name}"], 1.0, 0.0), NOTHING, NOTHING) for name in env.capacitors
    ]
    for k, name in enumerate(env.regulators):
        span = float(step[k]) * (env.tap_counts[k] - 1)
        own.append(((at[f"tap {name}"], 1 / span, -float(low[k]) / span), NOTHING, NOTHING))
    for name in env.batteries:
        own.append((NOTHING, (at[f"state of charge {name}"], 1.0, 0.0), (at[f"power {name}"], 1.0, 0.0)))
    turn = 2 * np.pi * env.horizon * float(params.hours) / 24
    time = at["time of day"]
    sizes = (len(env.capacitors), len(env.regulators), len(env.batteries))
    common = ((at["load level"], 1.0, ""), (time, turn, "sine"), (time, turn, "cosine"))
    return _parts(env.devices, sizes, own, common, 1, range(env.action_size))


def _der_control(env: DerControl) -> dict[str, Any]:
    at = {name: k for k, name in enumerate(env.observation_names)}

    def row(*readings: str) -> tuple[Reading, ...]:
        return tuple((at[name], 1.0, 0.0) if name else NOTHING for name in readings)

    pv = len(env.inverters)
    own = [row(f"available {name}", "", "") for name in env.inverters]
    own += [row(f"power {name}", f"state of charge {name}", "") for name in env.batteries]
    own += [row(f"power {name}", f"share delivered {name}", f"days left {name}") for name in env.cars]
    common = tuple((at[name], 1.0, "") for name in ("price", "time sine", "time cosine"))
    action = [2 * d for d in range(pv)] + [2 * d + 1 for d in range(pv)] + [2 * d for d in range(pv, len(env.devices))]
    return _parts(env.devices, (pv, len(env.batteries), len(env.cars)), own, common, 2, action)


def _microgrid(env: Microgrid) -> dict[str, Any]:
    at = {name: k for k, name in enumerate(env.observation_names)}
    on: Reading = (-1, 0.0, 1.0)  # blocks are always in service

    def row(power: str, charge: str, name: str) -> tuple[Reading, ...]:
        stored = (at[f"state of charge {name}"], 1.0, 0.0) if charge else NOTHING
        return ((at[f"{power} {name}"], 1.0, 0.0), stored, (at[f"in service {name}"], 1.0, 0.0))

    own = [row("power", "", name) for name in env.diesels]
    own += [row("available", "", name) for name in env.inverters]
    own += [row("power", "charge", name) for name in env.batteries]
    own += [((at[f"served {name}"], 1.0, 0.0), NOTHING, on) for name in env.blocks]
    known = (
        "grid-forming power", "state of charge grid-forming", "frequency lowest", "frequency highest", "load level",
        "time sine", "time cosine",
    )  # fmt: skip
    sizes = (len(env.diesels), len(env.inverters), len(env.batteries), len(env.blocks))
    n, total = len(env.sources), len(env.devices)
    action = [2 * d for d in range(n)] + [2 * d + 1 for d in range(n)] + [2 * d for d in range(n, total)] + [-1]
    return _parts(env.devices, sizes, own, tuple((at[name], 1.0, "") for name in known), 2, action)


def _parts(
    names: tuple[str, ...], sizes: tuple[int, ...], own: list[tuple[Reading, ...]], common: tuple[Wave, ...],
    numbers: int, action: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    kind = tuple(np.repeat(np.arange(len(sizes)), sizes).tolist())
    return {
        "names": names, "kind": kind, "kinds": len(sizes), "own": tuple(own), "common": common, "numbers": numbers,
        "action": tuple(action),
    }  # fmt: skip


def _buses(feeder: Feeder, env: Any, by_node: np.ndarray, first_node: np.ndarray) -> Buses:
    """The graph of closed branches, each seen from the source."""
    if set(feeder.node_names) != set(env.nodes):
        raise ValueError(f"{feeder.name}: its nodes are not those of the environment; take gridjax.env.tasks.feeder_of")
    number = {bus.name: k for k, bus in enumerate(feeder.buses)}
    voltage = np.full((len(number), PHASES), -1)
    for k, name in enumerate(feeder.node_names):
        bus, _, phase = name.rpartition(".")
        if 1 <= int(phase) <= PHASES:
            voltage[number[bus], int(phase) - 1] = by_node[k]
    pairs = {(number[a], number[b]) for a, b, closed in to_networkx(feeder).edges(data="closed") if closed and a != b}
    pairs |= {(b, a) for a, b in pairs}
    near: dict[int, list[int]] = {k: [] for k in number.values()}
    for a, b in sorted(pairs):
        near[a].append(b)
    hops = dict.fromkeys((number[split_terminal(source.bus)[0]] for source in feeder.sources), 0)
    front = list(hops)
    for a in front:
        for b in near[a]:
            if b not in hops:
                hops[b] = hops[a] + 1
                front.append(b)
    edges = tuple(sorted((a, b) for a, b in pairs if hops.get(a, 0) <= hops.get(b, 0)))
    bus_of = [number[name.rpartition(".")[0]] for name in feeder.node_names]
    return Buses(_tuples(voltage), edges, tuple(bus_of[k] for k in first_node))


def _placed(x: jax.Array, place: tuple[int, ...]) -> jax.Array:
    """Rows of (..., rows, width) by number, 0 for -1; as a product, since derivatives of gathers are slow."""
    if place == tuple(range(x.shape[-2])):
        return x
    table = (np.array(place)[:, None] == np.arange(x.shape[-2])[None]).astype(np.float32)
    return jnp.einsum("ab,...bw->...aw", jnp.asarray(table, x.dtype), x, precision="highest")


def _wave(x: jax.Array, gain: float, wave: str) -> jax.Array:
    if not wave:
        return x * gain
    return jnp.sin(gain * x) if wave == "sine" else jnp.cos(gain * x)


def _row(a: np.ndarray, dtype: Any, lead: int) -> jax.Array:
    """With so many leading axes of one."""
    return jnp.asarray(a, dtype).reshape((1,) * lead + a.shape)


def _tuples(a: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(x) for x in row) for row in a)
