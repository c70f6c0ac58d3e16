"""powergym's own code, run beside `gridjax.env.powergym`: a folder of its repository is given, nothing of it is copied.

It was written for gym 0.18 and an older dss-python; here it runs on gymnasium's spaces and the engine of today.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np

SYSTEMS = {"ieee13": "13Bus", "ieee34": "34Bus", "ieee123": "123Bus", "ieee8500": "8500Node"}
LARGE = "ieee8500"  # of which fewer steps and observed entries are kept
LOADS = 1177  # of its circuit


class Powergym:
    """One of its environments.

    Args:
      folder: a checkout of siemens/powergym.
      name: of the shipped feeder.
      variant: "", "_cbat", "_soc" or "_cbat_soc".
    """

    def __init__(self, folder: Path, name: str, variant: str = "") -> None:
        import gymnasium

        gym: Any = types.ModuleType("gym")
        gym.Env, gym.spaces = object, gymnasium.spaces
        sys.modules.setdefault("gym", gym)
        self._scratch = tempfile.TemporaryDirectory()  # it writes into its own folder
        copytree(folder, Path(self._scratch.name) / "peer", ignore=lambda *_: [".git"])
        shapes = Path(self._scratch.name) / "peer" / "systems" / "8500-Node" / "loadshape"
        if not list(shapes.glob("*loadshape*")):  # a checkout without its largest file: one day, to be written over
            shapes.mkdir(exist_ok=True)
            (shapes / "loadshape.csv").write_text("1.0\n" * (24 * LOADS))
        sys.path.insert(0, str(Path(self._scratch.name) / "peer"))
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            self.env = importlib.import_module("powergym.env_register").make_env(SYSTEMS[name] + variant)
        self.names = [str(n).lower() for n in self.env.load_profile.LOAD_NAMES]

    def close(self) -> None:
        """Removes its copy."""
        os.chdir(Path(__file__).parent)
        sys.path.pop(0)
        for module in [m for m in sys.modules if m.split(".")[0] == "powergym"]:
            del sys.modules[module]
        self._scratch.cleanup()

    def reset(self, episode: int) -> np.ndarray:
        """The first observation of one of its days."""
        return np.asarray(self.env.reset(load_profile_idx=episode))

    def multipliers(self, episode: int, loads: list[str]) -> np.ndarray:
        """The load multipliers of a day that has been reset, (steps, loads), in the order of names given."""
        table = self.env.load_profile.get_loadprofile(episode)
        table.columns = [str(c).lower() for c in table.columns]
        return table[[name.lower() for name in loads]].to_numpy()

    def write_multipliers(self, episode: int, loads: list[str], multipliers: np.ndarray) -> None:
        """Puts multipliers of one's own, (steps, loads), in the place of a day's; `reset` comes after it."""
        folder = Path(self.env.load_profile.loadshape_path) / str(episode).zfill(3)
        files = {path.stem.lower(): path for path in folder.glob("*.csv")}
        for k, name in enumerate(loads):
            files[name.lower()].write_text("".join(f"{float(m)!r}\n" for m in multipliers[:, k]))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Observation, reward, and whether the day is over."""
        obs, reward, done, _ = self.env.step(action)
        return np.asarray(obs), float(reward), bool(done)


def record(folder: Path, name: str, tolerance: float | None, steps: int = 24, every: int = 1) -> dict[str, Any]:
    """A day of random loads and actions: what was done, and what powergym made of it.

    Args:
      folder: as of `Powergym`.
      name: likewise.
      tolerance: of the engine; None leaves it at 1e-4, as powergym does.
      steps: that are made, whose loads come again in the rest of the day.
      every: one entry of so many that an observation keeps.
    """
    import gridjax

    peer = Powergym(folder, name)
    loads = [load.name for load in gridjax.feeders.load(name).loads]
    rng = np.random.default_rng(0)
    multipliers = rng.uniform(0.3, 1.0, (steps, len(loads))).round(4 if steps == 24 else 2)
    peer.write_multipliers(0, loads, np.resize(multipliers, (peer.env.horizon, len(loads))))
    first = peer.reset(0)
    circuit = peer.env.circuit
    if tolerance is not None:
        circuit.dss.Text.Command = f"set tolerance={tolerance}"
    actions, rewards, energies, observations = [], [], [], []
    for _ in range(steps):
        action = np.array([rng.integers(0, n) for n in peer.env.action_space.nvec])
        energies.append([float(b.kwh) for b in circuit.batteries.values()])
        seen, reward, _ = peer.step(action)
        actions.append(action.tolist())
        rewards.append(reward)
        observations.append(seen)
    out = {
        "multipliers": multipliers.tolist(),
        "first_observation": first[::every].round(8).tolist(),
        "actions": actions,
        "kwh_before": energies,
        "rewards": rewards,
        "last_observation": observations[-1][::every].round(8).tolist(),
    }
    peer.close()
    return out


def main() -> int:
    """Writes tests/data/powergym.json, by which the tests judge `gridjax.env.powergym`."""
    parser = argparse.ArgumentParser(description="Records days of powergym's own code.")
    parser.add_argument("--powergym", type=Path, required=True, help="a checkout of github.com/siemens/powergym")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "data" / "powergym.json")
    options = parser.parse_args()
    days = {}
    for name in SYSTEMS:
        kept = {"steps": 6, "every": 25} if name == LARGE else {}
        days[name] = record(options.powergym.resolve(), name, 1e-9, **kept)
        days[name]["rewards_at_its_tolerance"] = record(options.powergym.resolve(), name, None, **kept)["rewards"]
    options.out.write_text(json.dumps(days, indent=None, separators=(",", ":")) + "\n")
    print(f"{options.out}: {', '.join(days)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
