"""The cloud's side: Flower's FedAvg, as it is."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def model(megabytes: float) -> ArrayRecord:
    """Return a model of four arrays."""
    random = np.random.default_rng(0)
    floats = int(megabytes * 1e6) // 16
    return ArrayRecord([random.standard_normal(floats, dtype=np.float32) for _ in range(4)])


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that run_config asks for."""
    config = context.run_config
    devices = int(config["devices"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
    rounds = int(config["num-server-rounds"])
    strategy.start(grid, model(float(config["megabytes"])), num_rounds=rounds)
