"""A private federation of eight clients over two processes of two devices each, beside one block in each process."""

import socket
import subprocess
import sys

import jax

SAME = 1e-10


def start_both():
    """Starts both processes here and waits: 0 if both end with 0."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    started = [subprocess.Popen([sys.executable, __file__, coordinator, str(i)]) for i in range(2)]
    try:
        return max(abs(process.wait(200)) for process in started)
    finally:
        for process in started:
            process.kill()


def work(coordinator, number):
    """What each process does; its clients' data are on its own devices only."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(coordinator, 2, number, initialization_timeout=200)

    import numpy as np  # not before the processes know of each other
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from quadratics_for_tests import SHARED, clients
    from quadratics_for_tests import work as local

    from federated.federation import Plan, federate, start
    from federated.round import Federation, fed_adam
    from federated.sampling import Everyone

    goals = [np.random.default_rng(k).normal(1.0, 1.0, (1 + k % 3, 3)) for k in range(8)]
    federation = Federation((local(steps=2),), fed_adam(), bound=0.5, noise_multiplier=1.0, expected=8.0)
    plan = Plan(federation, (Everyone(),))
    alone = start(plan, SHARED, (clients(goals),))
    keys = [np.asarray(jax.random.key_data(jax.random.key(k))) for k in (3, 4)]
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*names)) for names in ((), ("clients",)))

    def placed(tree, where):
        return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, where, np.asarray(a).__getitem__), tree)

    both = alone.replace(server=placed(alone.server, whole), groups=placed(alone.groups, split))
    everywhere = [jax.random.wrap_key_data(placed(key, whole)) for key in keys]
    found = federate(plan, both, *everywhere, rounds=3, way=("shard_map", mesh))[0]
    here = federate(plan, alone, *map(jax.random.wrap_key_data, keys), rounds=3)[0]
    gap = np.abs(np.asarray(found.server.shared["a"]) - np.asarray(here.server.shared["a"])).max()
    far = np.abs(np.asarray(here.server.shared["a"])).max()
    spread = len(found.server.shared["a"].sharding.device_set)
    print(f"process {number}: {spread} devices of {jax.process_count()} processes, gap {gap:.1e}", flush=True)
    jax.distributed.shutdown()
    return 0 if gap <= SAME and far > 1e-3 else 1


if __name__ == "__main__":
    sys.exit(work(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else start_both())
