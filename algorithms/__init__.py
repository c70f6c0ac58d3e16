"""Offline reinforcement learning agents for gridjax environments.

One file an algorithm: a config and two pure functions (`algorithms.learning.Agent`). What they share:

- `spaces`, `batches`: what agents see of environments and of `gridjax.env.datasets`;
- `networks` with `layers`, `device_networks`, `graph_networks` and `distributions`: actors, critics and values;
- `learning`, `training`: losses and optimisers; many updates in one compiled scan, many seeds side by side;
- `evaluation`, `statistics`, `comparison`, `charts`, `baselines`: held-out days, intervals, tables;
- `fitted`, `off_policy`, `from_logs`: estimates without a simulator;
- `checkpoints`, `metrics`, `mixtures` and `*_command`: files and the command line.

docs/offline.md shows how they are used.
"""
