"""Federated learning over clients that keep their data, for any pytree of parameters and any local update.

- `work`, `block`, `round`, `federation`: what a client does, one round as a pure function, rounds on a budget;
- `aggregation`, `compression`: how updates become one, and what of them is sent;
- `clipping`, `noise`, `sampling`, `mechanism`, `hardened`: what bounds and hides a client's part of a sum;
- `accounting`, `statement`, `audit`: what was spent, in fields and in words, and a lower bound that is measured;
- `learning`: offline agents as clients; it is handed an agent and knows none;
- `settings`, `utilities`, `charts`, `federate_command`, `cli`: files and the command line.

docs/federated.md shows how they are used, docs/privacy.md what is promised.
"""
