"""The configuration of `gridjax federate`: read, defaulted, and refused with the file and the key."""

import dataclasses
import math
import re
import textwrap
from pathlib import Path

import pytest

from federated import compression, settings
from federated.settings import Owner, Privacy, Settings, read
from gridjax.commands import Refused

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "federated" / "two_utilities.toml"
UTILITY = '[[utilities]]\nname = "{}"\nenv = "DerControl-ieee{}"\n'
TWO = UTILITY.format("north", 13) + UTILITY.format("south", 34)


@pytest.fixture
def written(tmp_path):
    def written(text):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_defaults(written):
    found = read(written(TWO))
    assert found == Settings((Owner("north", "DerControl-ieee13"), Owner("south", "DerControl-ieee34")))
    assert (found.rounds, found.steps, found.shared, found.privacy, found.clients) == (20, 50, ("actor",), None, 2)
    assert found.compression == compression.Whole()
    assert read(written("[privacy]\nepsilon = 8\n" + TWO)).privacy == Privacy(8.0)
    assert math.isinf(read(written("[privacy]\nnoise_multiplier = 2\n" + TWO)).privacy.epsilon)


def test_every_key_is_taken(written):
    top = textwrap.dedent("""
        rounds = 3
        steps = 4
        batch_size = 5
        algorithm = "iql"
        shared = ["actor", "value"]
        optimiser = "fed_yogi"
        rate = 2
        prox = 0.5
        rule = "trimmed_mean"
        bits = 4
        share = 0.5
        seed = 7
        days = 0
        every = 2
        [agent]
        hidden = [8]
        [privacy]
        epsilon = inf
        delta = 1e-3
        noise_multiplier = 3
        bound = "adaptive"
        adjacency = "replace"
        [[utilities]]
        name = "one"
        env = "VoltVar-ieee13"
        dataset = "mixed"
        episodes = 12
        seed = 3
        options = {hours = 4.0}
        clients = 6
    """)
    found = read(written(top))
    assert found == Settings(
        (Owner("one", "VoltVar-ieee13", "mixed", 12, 3, {"hours": 4.0}, 6),), 3, 4, 5, "iql", {"hidden": [8]},
        ("actor", "value"), "fed_yogi", 2.0, 0.5, "trimmed_mean", 4, None, 0.5, 7, 0, 2,
        Privacy(math.inf, 1e-3, 3.0, "adaptive", "replace"),
    )  # fmt: skip
    assert isinstance(found.rate, float) and found.clients == 6 and found.compression == compression.Quantised(4)
    given = {f.name for f in dataclasses.fields(Settings)} - {"utilities", "privacy", "top_share", "agent"}
    assert all(f"{name} = " in top for name in given)
    assert read(written("top_share = 0.2\n" + TWO)).compression == compression.TopK(0.2)


def test_the_module_s_own_example_and_the_shipped_one_are_read(written):
    lines = settings.__doc__.split("\n\n", 1)[1]
    found = read(written(lines + '\n[[utilities]]\nname = "south"\nenv = "DerControl-ieee34"\n'))
    assert found.algorithm == "rebrac" and found.agent == {"hidden": [16, 16]} and found.privacy.epsilon == 8.0
    assert [one.name for one in read(EXAMPLE).utilities] == ["north", "south"]


REFUSALS = {
    "rounds = ": "run.toml is no TOML file",
    "round = 3": "run.toml: no key 'round'; known are utilities, rounds",
    'rounds = "3"': "run.toml: rounds = '3' is not of type int",
    "rounds = true": "run.toml: rounds = True is not of type int",
    "rounds = 2.5": "run.toml: rounds = 2.5 is not of type int",
    "rounds = 0": "run.toml: rounds = 0: take a positive number",
    '[privacy]\nepsilon = 1\nunit = "row"': "run.toml: no unit 'row': choose one of client, trajectory",
    '[privacy]\nepsilon = 1\nrandomness = "dice"': "run.toml: no randomness 'dice'",
    "[privacy]\nepsilon = 1\ndrawn = 0": "run.toml: drawn = 0: take a probability",
    '[privacy]\nepsilon = 1\nunit = "trajectory"\nbound = "adaptive"': 'unit = "trajectory" takes a number as bound',
    'share = 0.5\n[privacy]\nepsilon = 1\nrandomness = "hardened"': 'randomness = "hardened" takes a number as bound',
    "steps = -1": "run.toml: steps = -1: take a positive number",
    "batch_size = 0": "run.toml: batch_size = 0: take a positive number",
    "every = 0": "run.toml: every = 0: take a positive number",
    "rate = 0.0": "run.toml: rate = 0.0: take a positive number",
    "rate = nan": "run.toml: rate = nan: take a positive number",
    "rate = inf": "run.toml: rate = inf: take a positive number",
    "prox = -0.5": "run.toml: prox = -0.5: take 0 or more",
    "prox = nan": "run.toml: prox = nan: take 0 or more",
    "days = -1": "run.toml: days = -1: take 0 or more",
    "share = 0.0": "run.toml: share = 0: take one above 0",
    "share = 1.5": "run.toml: share = 1.5: take one above 0",
    'optimiser = "sgd"': "run.toml: no optimiser 'sgd': choose one of fed_avg, fed_avg_m, fed_adam, fed_yogi",
    'rule = "krum"': "run.toml: no rule 'krum': choose one of mean, weighted, median, trimmed_mean",
    "shared = []": "run.toml: shared = []: name a learner",
    "shared = [3]": "run.toml: shared = [3] is not of type",
    'shared = "actor"': "run.toml: shared = 'actor' is not of type",
    "bits = 1": "run.toml: bits = 1: 1 bits: take 2 to 16",
    "top_share = 2.0": "run.toml: top_share = 2.0: a share of 2",
    "bits = 4\ntop_share = 0.1": "run.toml: bits and top_share: take one of them",
    "agent = 3": "run.toml: agent = 3 is not of type",
    "privacy = 3": "run.toml: privacy: a table of keys is wanted, not 3",
    "[privacy]": "run.toml: privacy needs an epsilon or a noise_multiplier",
    "[privacy]\neps = 3.0": "run.toml: privacy: no key 'eps'; known are epsilon, delta",
    "[privacy]\nepsilon = 0.0": "run.toml: epsilon = 0: take a positive number",
    "[privacy]\nepsilon = nan": "run.toml: epsilon = nan: take a positive number",
    "[privacy]\nnoise_multiplier = -1.0": "run.toml: noise_multiplier = -1: take a positive number",
    "[privacy]\nepsilon = 1\nbound = 0": "run.toml: bound = 0: take a positive number",
    '[privacy]\nepsilon = 1\nbound = "wide"': "run.toml: bound = 'wide': take a number or \"adaptive\"",
    "[privacy]\nepsilon = 1\ndelta = 1.0": "run.toml: delta = 1: take one above 0 and below 1",
    '[privacy]\nepsilon = 1\nadjacency = "all"': "run.toml: no adjacency 'all': choose one of",
}


@pytest.mark.parametrize("top", REFUSALS)
def test_a_refusal_names_the_file_and_the_key(top, written):
    with pytest.raises(Refused, match=re.escape(REFUSALS[top])):
        read(written(f"{top}\n{TWO}"))


ONE = UTILITY.format("a", 13)
OWNERS = {
    "": "run.toml: no utilities; begin each with",
    "utilities = 3\n": "run.toml: no utilities; begin each with",
    ONE: "run.toml: one client alone is no federation",
    ONE + ONE: "run.toml: two utilities of one name",
    ONE + '[[utilities]]\nname = "b"\n': "run.toml: utilities 2: env is missing",
    ONE + "clients = 0\n": "run.toml: a: clients = 0: take a positive number",
    '[privacy]\nepsilon = 1\nunit = "trajectory"\n' + ONE + "clients = 2\n": 'run.toml: a: unit = "trajectory"',
    ONE + "episodes = 0\n": "run.toml: a: episodes = 0: take a positive number",
    ONE + "options = 3\n": "run.toml: utilities 1: options = 3 is not of type",
    ONE + "size = 3\n": "run.toml: utilities 1: no key 'size'; known are name, env",
    ONE.replace('"a"', '"../a"') + "clients = 2\n": "run.toml: name = '../a': take a word",
    ONE.replace('"a"', '"checkpoints"') + "clients = 2\n": "run.toml: name = 'checkpoints': take a word",
    "utilities = [3]\n": "run.toml: utilities 1: a table of keys is wanted, not 3",
}


@pytest.mark.parametrize("text", OWNERS)
def test_utilities_that_make_no_sense(text, written):
    with pytest.raises(Refused, match=re.escape(OWNERS[text])):
        read(written(text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(Refused, match=r"none\.toml: No such file"):
        read(tmp_path / "none.toml")
