"""The peers' half of `benchmarks.federated_speed`, in an environment of its own.

    .venv-flower/bin/python benchmarks/federated_peers.py request.json

Knows nothing of gridjax. The peers are pfl-research (F. Granqvist et al., NeurIPS 2024) and Flower (D. J. Beutel et
al., 2020) with its simulation on Ray; each is used as its documentation has it, and both train the same torch module,

    mean = tanh(W_3 relu(W_2 relu(W_1 x + b_1) + b_2) + b_3),   loss = - E log N(a; mean, s)

by Adam on the clients' rows, in batches that follow each other. Updates are clipped, averaged, and given noise by the
peer's own mechanism. Optimisers begin anew in every round.

The request: "peer" ("pfl" or "flower"), "data" (an archive with observation (clients, rows, n), action, and the first
weights as torch has them, "w0", "b0", "w1", ... and "log_std"), "batch", "steps" (rows are their product), "rate",
"bound", "noise", "rounds", "threads" of torch, "processes", "out" (the answer's path without suffix). The answer has
the seconds of every round, and the weights after the last one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Net(torch.nn.Module):
    """The policy, with the weights of an archive."""

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        count = sum(name.startswith("w") for name in weights)
        self.layers = torch.nn.ModuleList()
        for k in range(count):
            out, inside = weights[f"w{k}"].shape
            layer = torch.nn.Linear(inside, out)
            layer.weight.data = torch.tensor(weights[f"w{k}"])
            layer.bias.data = torch.tensor(weights[f"b{k}"])
            self.layers.append(layer)
        self.log_std = torch.nn.Parameter(torch.tensor(weights["log_std"]))

    def loss(self, observation: torch.Tensor, action: torch.Tensor, **options: Any) -> torch.Tensor:
        """() minus the mean logarithm of the actions' density."""
        h = observation
        for layer in list(self.layers)[:-1]:
            h = torch.relu(layer(h))
        mean = torch.tanh(self.layers[-1](h))
        log_std = torch.clamp(self.log_std, -5.0, 2.0)
        z = (action - mean) * torch.exp(-log_std)
        return (0.5 * z * z + log_std + 0.5 * np.log(2 * np.pi)).sum(dim=-1).mean()

    def metrics(self, observation: torch.Tensor, action: torch.Tensor, **options: Any) -> dict[str, Any]:
        """pfl wants it; nothing is evaluated while rounds are timed."""
        return {}


def weights_of(arrays: Any) -> dict[str, np.ndarray]:
    """Those of an archive that are weights."""
    return {name: arrays[name] for name in arrays if name not in ("observation", "action")}


def named(net: Net) -> dict[str, Any]:
    """The weights of a net, as the archive has them."""
    out = {}
    for k, layer in enumerate(net.layers):
        out |= {f"w{k}": layer.weight, f"b{k}": layer.bias}
    return {name: a.detach().numpy().copy() for name, a in (out | {"log_std": net.log_std}).items()}


@cache
def loaded(path: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, np.ndarray]]:
    """Observations, actions and first weights; once a process."""
    with np.load(path) as arrays:
        return (
            torch.tensor(arrays["observation"]), torch.tensor(arrays["action"]), weights_of(dict(arrays))
        )  # fmt: skip


def run_pfl(request: dict[str, Any]) -> dict[str, Any] | None:
    """pfl's rounds; None in a process that is not the first."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops.selector import get_framework_module
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism

    torch.set_num_threads(request["threads"])
    observation, action, weights = loaded(request["data"])
    clients, at = len(observation), [time.perf_counter()]

    class Clock(TrainingProcessCallback):
        def on_train_begin(self, *, model: Any) -> Any:
            at[0] = time.perf_counter()
            return Metrics()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            at.append(time.perf_counter())
            return False, Metrics()

    net = Net(weights)
    data = FederatedDataset(
        lambda user: Dataset((observation[user], action[user])),
        get_user_sampler("minimize_reuse", list(range(clients))),
    )
    model = PyTorchModel(net, torch.optim.Adam, torch.optim.SGD(net.parameters(), lr=1.0))
    mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(request["bound"], request["noise"]))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=request["rounds"], evaluation_frequency=request["rounds"] + 1,
            train_cohort_size=clients, val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[mechanism]), model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=request["rate"], local_batch_size=request["batch"]
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None), callbacks=[Clock()],
        send_metrics_to_platform=False,
    )  # fmt: skip
    if get_framework_module().distributed.global_rank:
        return None
    np.savez(request["out"] + ".npz", **named(net))
    return {"seconds": np.diff(at).tolist()}


def flower_client(request: dict[str, Any]) -> Any:
    """Flower's ClientApp."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(request["threads"])
        observation, action, weights = loaded(request["data"])
        own = int(context.node_config["partition-id"])
        net = Net(weights)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.Adam(net.parameters(), lr=request["rate"])
        for k in range(request["steps"]):
            here = slice(k * request["batch"], (k + 1) * request["batch"])
            optimiser.zero_grad()
            net.loss(observation[own, here], action[own, here]).backward()
            optimiser.step()
        metrics = MetricRecord({"num-examples": observation.shape[1]})
        content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def run_flower(request: dict[str, Any]) -> dict[str, Any]:
    """Flower's rounds."""
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
    from flwr.simulation import run_simulation

    observation, _, weights = loaded(request["data"])
    clients, at = len(observation), []
    app = ServerApp()

    def seen(number: int, arrays: Any) -> None:
        at.append(time.perf_counter())

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        plain = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        strategy = DifferentialPrivacyServerSideFixedClipping(plain, request["noise"], request["bound"], clients)
        net = Net(weights)
        result = strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=request["rounds"], evaluate_fn=seen)
        net.load_state_dict(result.arrays.to_torch_state_dict())
        np.savez(request["out"] + ".npz", **named(net))

    run_simulation(
        app, flower_client(request), num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": request["processes"]},
        },
    )  # fmt: skip
    return {"seconds": np.diff(at).tolist()}


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of what ran."""
    from importlib.metadata import version

    return {name: version(name) for name in names}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    if request["peer"] == "pfl":
        answer, tools = run_pfl(request), ("pfl", "torch", "numpy")
    else:
        # No address to be told of the run.
        os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        answer, tools = run_flower(request), ("flwr", "ray", "torch", "numpy")
    if answer is not None:
        answer["versions"] = versions(tools)
        Path(request["out"] + ".json").write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    # By its name, so that Flower's actors find it by reference, and keep the data that they have read.
    import federated_peers

    federated_peers.main()
