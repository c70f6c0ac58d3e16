"""Offline reinforcement learning agents for gridjax environments.

This package will hold the networks, the losses and the training loops of the agents, one file an
algorithm. Nothing is here yet: it defines no names.
"""
