"""`gridjax collect`: a data set of behaviours in an environment, from the command line.

As those of `gridjax.commands`: takes the parsed options and two consoles (results, messages), returns the exit code.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridjax.commands import Refused, check_folder
from gridjax.drawing import printable
from gridjax.env.behaviours import NAMES, named
from gridjax.env.collection import collect as run
from gridjax.env.datasets import Dataset, costs, returns, save
from gridjax.env.tasks import feeder_of, make, names


def add_parser(sub: Any, common: argparse.ArgumentParser, whole: Any, seed: Any) -> None:
    """Adds the command; `whole` and `seed` read positive numbers and seeds."""
    one = sub.add_parser("collect", parents=[common], help="log a data set of behaviours in an environment")
    one.add_argument("--env", required=True, metavar="NAME", help="such as VoltVar-ieee13-v0; --env list shows all")
    one.add_argument(
        "--behaviour", action="append", type=behaviour, metavar="NAME[=SHARE]",
        help=f"of {', '.join(NAMES)}; more than once for a mixture; default: random",
    )  # fmt: skip
    one.add_argument("--episodes", type=whole, default=100, help="default: %(default)s")
    one.add_argument("--out", metavar="FILE", help="the .npz file to write")
    one.add_argument("--seed", type=seed, default=0, help="of the behaviours; default: %(default)s")
    one.add_argument("--days-seed", type=seed, default=0, help="of the days; default: %(default)s")
    one.add_argument("--days", type=whole, default=100, help="how many are drawn; default: %(default)s")
    one.add_argument("--hours", type=float, help="length of a step; default: the task's own, 1 or 0.5")
    one.add_argument(
        "--set", action="append", type=setting, metavar="KEY=VALUE", default=[], help="an option of the environment"
    )
    one.add_argument("--float32", action="store_true", help="compute in single precision")
    one.set_defaults(run=collect)


def behaviour(text: str) -> tuple[str, float]:
    """A behaviour's name and share."""
    name, given, share = text.partition("=")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"{printable(name)!r} is none of {', '.join(NAMES)}")
    try:
        value = float(share) if given else 1.0
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{printable(text)!r}: the share must be a number above 0")
    return name, value


def setting(text: str) -> tuple[str, Any]:
    """An option's name and value, which is JSON or else text."""
    key, given, value = text.partition("=")
    if not given or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not of the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def collect(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Logs a data set; 1 where a power flow was not solved."""
    if options.env == "list":
        console.print(Text("\n".join(names())))
        return 0
    if options.out is None:
        raise Refused("say where to write with --out FILE.npz")
    if not options.out.endswith(".npz"):
        raise Refused(f"{options.out}: a data set's file ends in .npz")
    check_folder(options.out)
    shares: dict[str, float] = dict(options.behaviour or [("random", 1.0)])
    if len(shares) < len(options.behaviour or []):
        raise Refused("a behaviour is named twice: give each one share")
    made_by = {"name": options.env, "seed": options.days_seed, "days": options.days, "hours": options.hours}
    twice = [key for key, _ in options.set if key in made_by]
    if twice:
        raise Refused(f"--set {twice[0]}: take --env, --days-seed, --days or --hours for that")
    made_by |= dict(options.set)
    with errors.status("making the environment"):
        try:
            env, params = make(**made_by)
        except TypeError as error:  # an option that the task does not have
            raise Refused(f"{options.env}: {error}; see gridjax.env.tasks.make") from error
    search, key = jax.random.split(jax.random.key(options.seed))
    with errors.status("making the behaviours"):
        chosen = named(shares, env, params, feeder_of(**made_by), search)
    data = run(env, params, chosen, key, options.episodes, made_by=made_by, progress=errors.is_terminal)
    save(options.out, data)
    console.print(table(data, options.out))
    unsolved = int(data.transitions.cost[:, -1].sum())
    if unsolved:
        errors.print(
            Text(f"gridjax: {unsolved} of {len(data.episode)} steps were not solved; each ends its episode"),
            soft_wrap=True,
        )
    return 1 if unsolved else 0


def table(data: Dataset, path: str) -> Table:
    """What was logged: a row for each behaviour."""
    title = f"{printable(path)}: {data.episodes} episodes, {len(data.episode)} steps, {data.fingerprint[:12]}"
    out = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (
        "behaviour",
        "episodes",
        "return",
        "spread",
        *(f"{name}, a step" for name in data.header["cost_names"]),
    ):
        out.add_column(Text(column), justify="left" if column == "behaviour" else "right", overflow="fold")
    gained, paid, lengths = returns(data), costs(data), np.bincount(data.episode, minlength=data.episodes)
    for k, name in enumerate(data.header["behaviours"]):
        mine = data.behaviour == k
        if mine.any():
            each = paid[mine].sum(axis=0) / lengths[mine].sum()
            spread = f"{gained[mine].std(ddof=1):.4g}" if mine.sum() > 1 else "\u2013"
            out.add_row(name, str(mine.sum()), f"{gained[mine].mean():.5g}", spread, *(f"{x:.4g}" for x in each))
    return out
