"""One batch of power flows over several processes, as on several machines, and the check that it changes nothing.

    python examples/processes.py                                 # 2 processes of 4 devices here
    python examples/processes.py --processes 2 --process 0 --coordinator HOST:PORT    # on the first machine
    python examples/processes.py --processes 2 --process 1 --coordinator HOST:PORT    # on the second

Without `--coordinator` the script starts all its processes on this machine. Each of them holds its part of the
scenarios; `jax.distributed` makes one array of them, `jax.set_mesh` says that the batch is spread over the mesh, and
`jax.vmap(gridjax.solve)` does the rest. Afterwards each process solves its part again on one device and compares.
Exit status 1 if a scenario did not converge or a voltage differs by more than 1e-10 pu.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time

import jax

SAME = 1e-10  # pu


def main() -> int:
    parser = argparse.ArgumentParser(description="One batch of power flows over several processes")
    parser.add_argument("--feeder", default="ieee123")
    parser.add_argument("--scenarios", type=int, default=1024, help="in all; a multiple of all devices")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4, help="of each process")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0; none starts all processes here")
    parser.add_argument("--process", type=int, default=0, help="which process this is")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a lost process is an error")
    args = parser.parse_args()
    if args.scenarios % (args.processes * args.devices):
        parser.error(f"{args.scenarios} scenarios cannot be spread evenly over {args.processes * args.devices} devices")
    if not 0 <= args.process < args.processes:
        parser.error(f"--process {args.process} is not one of {args.processes}")
    return work(args) if args.coordinator else start_all(args)


def start_all(args: argparse.Namespace) -> int:
    """Starts the processes here and waits: 0 if all end with 0."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, *sys.argv, "--coordinator", coordinator]
    started = [subprocess.Popen([*command, "--process", str(i)]) for i in range(args.processes)]
    try:
        return max(abs(process.wait(args.timeout)) for process in started)
    except subprocess.TimeoutExpired:
        print(f"A process did not end within {args.timeout} s.", file=sys.stderr)
        return 1
    finally:
        for process in started:
            process.kill()


def work(args: argparse.Namespace) -> int:
    """What each process does."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", args.devices)
    jax.distributed.initialize(args.coordinator, args.processes, args.process, initialization_timeout=int(args.timeout))

    import jax.numpy as jnp  # not before the processes know of each other
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import gridjax

    grid = gridjax.compile(gridjax.feeders.load(args.feeder))
    factors = np.random.default_rng(0).uniform(0.5, 1.5, (args.scenarios, grid.nominal.load_kw.shape[0]))
    mesh = jax.make_mesh((jax.device_count(),), ("scenarios",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("scenarios"))
    here = jax.make_array_from_callback(factors.shape, spread, lambda index: factors[index])
    everywhere = jax.tree.map(lambda a: jax.device_put(np.asarray(a), NamedSharding(mesh, PartitionSpec())), grid)

    def voltages(grid, factor):
        nominal = grid.nominal
        point = nominal.replace(load_kw=nominal.load_kw * factor, load_kvar=nominal.load_kvar * factor)
        flow = gridjax.solve(grid, point, tol=1e-12)
        return flow.v, flow.converged

    solve = jax.jit(jax.vmap(voltages, in_axes=(None, 0)))
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        v, converged = jax.block_until_ready(solve(everywhere, here))
        seconds = time.perf_counter() - start
        lowest = float(jax.jit(lambda v: jnp.min(jnp.abs(v)))(v))  # a collective: every process learns it
    rows = np.sort(np.concatenate([np.arange(args.scenarios)[part.index[0]] for part in v.addressable_shards]))
    mine = np.concatenate([part.data for part in sorted(v.addressable_shards, key=lambda part: part.index[0].start)])
    alone, _ = jax.device_get(solve(grid, factors[rows]))
    worst = float(np.abs(mine - alone).max())
    good = all(bool(part.data.all()) for part in converged.addressable_shards)
    print(
        f"process {args.process} of {args.processes}: {len(rows)} of {args.scenarios} scenarios on "
        f"{jax.local_device_count()} of {jax.device_count()} devices, {seconds:.1f} s with compiling; lowest voltage "
        f"of all {lowest:.6f} pu; from one device's {worst:.1e} pu",
        flush=True,
    )
    jax.distributed.shutdown()
    return 0 if good and worst <= SAME else 1


if __name__ == "__main__":
    sys.exit(main())
