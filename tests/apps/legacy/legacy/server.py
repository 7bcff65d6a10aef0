"""Flower's older server side: server_fn, or the SecAgg+ workflow when run_config wants it."""

import json
from pathlib import Path

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp

SEEN = []


class Strategy(FedAvg):
    """FedAvg that keeps what it came to."""

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        SEEN.append([a.tolist() for a in parameters_to_ndarrays(parameters)])
        Path("results.json").write_text(json.dumps({"fit": SEEN, "failures": len(failures)}))
        return parameters, metrics


def strategy(initial=None):
    return Strategy(
        min_fit_clients=5,
        min_evaluate_clients=5,
        min_available_clients=5,
        initial_parameters=initial,
        accept_failures=True,
    )


class Chosen(ServerApp):
    """A ServerApp with server_fn, or with a main that runs the secure workflow."""

    def __call__(self, grid, context):
        if not context.run_config["secure"]:
            super().__call__(grid, context)
            return
        zeros = ndarrays_to_parameters([np.zeros(3, dtype=np.float32)])
        legacy = LegacyContext(
            context=context, config=ServerConfig(num_rounds=2), strategy=strategy(zeros)
        )
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(5, 3))(grid, legacy)


def server_fn(context):
    return ServerAppComponents(strategy=strategy(), config=ServerConfig(num_rounds=2))


app = Chosen(server_fn=server_fn)
