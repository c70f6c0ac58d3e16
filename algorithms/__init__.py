"""Offline reinforcement learning agents for gridjax environments.

Networks, losses and training in Flax, one file an algorithm. An agent is a config and two pure functions
(`algorithms.learning.Agent`); `algorithms.training.train` runs any of them over a data set of
`gridjax.env.datasets`, many updates in one compiled scan and many seeds side by side.
"""
