"""Two small problems with known optima, their logged data, and the exact worth of a policy; NumPy only."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from algorithms.spaces import plain_space
from gridjax.env.datasets import assemble
from gridjax.env.environment import Transitions

STATES, RIGHT = 5, 1
NEAR, FAR, SLIP = 0.15, 1.0, 0.1
CHAIN_DISCOUNT, LQ_DISCOUNT = 0.9, 0.9
CHAIN = plain_space(STATES, (2,))
LQ = plain_space(2, (0,))


@dataclass(frozen=True)
class Chain:
    """Five places in a row; position 0 goes left, 1 goes right, and one in ten moves goes the other way.

    Who is moved against the left end gets NEAR, against the right end FAR and a cost of 1. Nothing ever terminates.
    """

    @property
    def tables(self):
        """Probabilities (states, actions, states), rewards (states, actions) and costs, in the mean."""
        p, reward, cost = np.zeros((STATES, 2, STATES)), np.zeros((STATES, 2)), np.zeros((STATES, 2))
        for s in range(STATES):
            for a in (0, 1):
                for to, chance in ((a, 1 - SLIP), (1 - a, SLIP)):
                    p[s, a, np.clip(s + 2 * to - 1, 0, STATES - 1)] += chance
                    reward[s, a] += chance * (NEAR * (s == 0 and to == 0) + FAR * (s == STATES - 1 and to == 1))
                    cost[s, a] += chance * (s == STATES - 1 and to == 1)
        return p, reward, cost

    def best(self, discount=CHAIN_DISCOUNT):
        """The optimal values (states,) by value iteration."""
        p, reward, _ = self.tables
        v = np.zeros(STATES)
        for _ in range(1000):
            v = (reward + discount * p @ v).max(axis=1)
        return v

    def worth(self, actions, discount=CHAIN_DISCOUNT):
        """The values and the discounted costs (states,) of a policy that takes actions (states,)."""
        p, reward, cost = self.tables
        rows = np.arange(STATES), np.asarray(actions, int).reshape(STATES)
        return np.linalg.solve(np.eye(STATES) - discount * p[rows], np.stack([reward[rows], cost[rows]], -1)).T


@dataclass(frozen=True)
class Pushed:
    """A mass on a line, pushed by a number from -1 to 1: x' = A x + B a, reward -(x Q x + R a a), cost |a|."""

    step: float = 0.2

    @property
    def matrices(self):
        """A, B, Q, R."""
        a = np.array([[1.0, self.step], [0.0, 1.0]])
        return a, np.array([[self.step**2 / 2], [self.step]]) * 2.0, np.diag([1.0, 0.1]), np.array([[0.1]])

    def gain(self, discount=LQ_DISCOUNT):
        """K of the optimal a = -K x, and P of its cost x P x (Riccati equation, discounted)."""
        a, b, q, r = self.matrices
        p = q
        for _ in range(2000):
            k = np.linalg.solve(r + discount * b.T @ p @ b, discount * b.T @ p @ a)
            p = q + discount * a.T @ p @ (a - b @ k)
        return k, p

    def worth(self, act, starts, discount=LQ_DISCOUNT, steps=150):
        """The mean discounted return from starts (n, 2) of act (n, 2) -> (n, 1)."""
        a, b, q, r = self.matrices
        x, total = np.asarray(starts, float), np.zeros(len(starts))
        for t in range(steps):
            u = np.asarray(act(x), float)
            total -= discount**t * (np.sum(x @ q * x, -1) + np.sum(u @ r * u, -1))
            x = x @ a.T + u @ b.T
        return total.mean()


STARTS = np.array([[x, v] for x in (-0.4, -0.2, 0.2, 0.4) for v in (-0.1, 0.0, 0.1)])


@cache
def chain_data(episodes=200, steps=20, seed=0):
    """The chain from all places: three in ten episodes go right nine times of ten, the others anywhere."""
    draw, parts = np.random.default_rng(seed), []
    skilled = draw.uniform(size=episodes) < 0.3
    for e in range(episodes):
        s, columns = draw.integers(STATES), []
        for t in range(steps):
            a = int(draw.uniform() < 0.9) if skilled[e] else draw.integers(2)
            to = a if draw.uniform() > SLIP else 1 - a
            after = np.clip(s + 2 * to - 1, 0, STATES - 1)
            end = s == STATES - 1 and to == 1
            reward = NEAR * (s == 0 and to == 0) + FAR * end
            columns.append((np.eye(STATES)[s], [a], reward, [float(end)], np.eye(STATES)[after], t == steps - 1))
            s = after
        parts.append(_part(columns))
    return assemble(parts, skilled.astype(int), np.arange(episodes), {"behaviours": ["random", "skilled"]})


@cache
def lq_data(episodes=500, steps=8, seed=0):
    """The mass under linear policies of which none is the best, with much noise; seven in ten are plainly random."""
    draw, problem, parts = np.random.default_rng(seed), Pushed(), []
    best, _ = problem.gain()
    a, b, q, r = problem.matrices
    skilled = draw.uniform(size=episodes) < 0.3
    for e in range(episodes):
        x, columns = draw.uniform([-0.7, -0.7], [0.7, 0.7]), []
        k = best * draw.uniform(0.2, 1.0, best.shape)
        for t in range(steps):
            u = -k @ x + 0.3 * draw.normal(size=1) if skilled[e] else draw.uniform(-1, 1, 1)
            u = np.clip(u, -1, 1)
            after = a @ x + b @ u
            columns.append((x, u, -(x @ q @ x + u @ r @ u), np.abs(u), after, t == steps - 1))
            x = after
        parts.append(_part(columns))
    return assemble(parts, skilled.astype(int), np.arange(episodes), {"behaviours": ["random", "skilled"]})


def _part(columns):
    """An episode's transitions and its actions' unknown probabilities."""
    observation, action, reward, cost, after, late = (np.array(c, np.float32) for c in zip(*columns, strict=True))
    after[:-1] = observation[1:]
    ends = np.zeros(len(late), bool)
    return Transitions(observation, action, reward, cost, after, ends, late > 0, {}), np.full(len(late), np.nan)
