"""The commands of learning: `gridjax train | evaluate | compare`.

`gridjax.__main__` adds them to the simulator's. What runs them is imported when it runs, so that the other commands
start no slower.
"""

from __future__ import annotations

import argparse
from typing import Any

from algorithms import evaluation_commands
from gridjax.dataset_commands import setting


def add_parsers(sub: Any, common: argparse.ArgumentParser, whole: Any, seed: Any) -> None:
    """Adds the commands; `whole` and `seed` read positive numbers and seeds."""
    _add_train(sub, common, whole, seed)
    evaluation_commands.add_parsers(sub, common, whole, seed)


def _add_train(sub: Any, common: argparse.ArgumentParser, whole: Any, seed: Any) -> None:
    one = sub.add_parser("train", parents=[common], help="train an agent on logged data")
    one.add_argument("--env", required=True, metavar="NAME", help="such as VoltVar-ieee123")
    one.add_argument("--algorithm", required=True, metavar="NAME", help="such as iql; list shows all")
    one.add_argument(
        "--dataset", default="mixed", metavar="FILE|MIXTURE",
        help="a .npz file of `gridjax collect`, or behaviours to collect from with their shares, as "
        "random,noisy-classical=3; default: mixed, equal shares of random, noisy-classical (where there are controls) "
        "and noisy-constant",
    )  # fmt: skip
    one.add_argument("--episodes", type=whole, metavar="N", help="to collect; default: 1000")
    one.add_argument("--out", metavar="FOLDER", help="of checkpoints and metrics; default: runs/ENV-ALGORITHM")
    one.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --out")
    one.add_argument("--updates", type=whole, default=20_000, metavar="N", help="default: %(default)s")
    one.add_argument("--seeds", type=whole, default=1, metavar="N", help="agents side by side; default: %(default)s")
    one.add_argument("--seed", type=seed, default=0, help="of the training; default: %(default)s")
    one.add_argument("--batch-size", type=whole, default=256, metavar="N", help="default: %(default)s")
    one.add_argument(
        "--every", type=whole, default=1000, metavar="N",
        help="updates between checkpoints and rows of metrics; default: %(default)s",
    )  # fmt: skip
    one.add_argument("--keep", type=whole, default=3, metavar="N", help="checkpoints that stay; default: %(default)s")
    one.add_argument("--hidden", type=widths, metavar="N,N", help="widths of the networks; default: the algorithm's")
    one.add_argument(
        "--set", action="append", type=setting, metavar="KEY=VALUE", default=[],
        help="a field of the algorithm's config; a list in brackets gives each seed its own",
    )  # fmt: skip
    one.add_argument("--best", type=share, help="learn from this share of the episodes, those of highest return")
    one.add_argument("--price", type=prices, metavar="P,P", help="of each cost, taken off the reward")
    one.add_argument("--reward-scale", type=factor, default=1.0, metavar="X", help="default: %(default)s")
    one.add_argument("--actions", metavar="KIND", help="an environment's option, such as mixed or continuous")
    one.add_argument(
        "--env-set", action="append", type=setting, metavar="KEY=VALUE", default=[], help="an environment's option"
    )
    one.add_argument(
        "--no-evaluation",
        action="store_true",
        help="do not play it on held-out days; `gridjax evaluate` does so later",
    )
    one.add_argument("--tensorboard", action="store_true", help="write TensorBoard's event files too")
    one.add_argument("--float32", action="store_true", help="simulate in single precision; agents always learn in it")
    one.set_defaults(run=_train)


def _train(*args: Any) -> int:
    from algorithms import train_command

    return train_command.train(*args)


def widths(text: str) -> tuple[int, ...]:
    """Whole positive numbers with commas."""
    try:
        out = tuple(int(one) for one in text.split(","))
    except ValueError:
        out = (0,)
    if min(out) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 256,256")
    return out


def prices(text: str) -> tuple[float, ...]:
    """Numbers from 0 with commas."""
    try:
        out = tuple(float(one) for one in text.split(","))
    except ValueError:
        out = (-1.0,)
    if not all(0 <= one < float("inf") for one in out):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 10,0: numbers that are not negative")
    return out


def factor(text: str) -> float:
    """A positive number."""
    try:
        out = float(text)
    except ValueError:
        out = 0.0
    if not 0 < out < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return out


def share(text: str) -> float:
    """A number above 0, at most 1."""
    out = factor(text)
    if out > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return out
