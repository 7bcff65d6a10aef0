"""The cloud's side: every device gets one model in each round; the rounds are noted."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Noted(FedAvg):
    """FedAvg that makes a new model for each round, and notes the rounds in the report file."""

    report = Path("/dev/null")
    floats = 0
    began = 0.0

    def configure_evaluate(self, server_round: int, *rest: Any) -> Any:
        """Send a model that nobody has, as training would have made."""
        self.began = time.time()
        random = np.random.default_rng(server_round)
        fresh = ArrayRecord([random.standard_normal(self.floats, dtype=np.float32)])
        return super().configure_evaluate(server_round, fresh, *rest[1:])

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> Any:
        """Note what came, then do as FedAvg does."""
        replies = list(replies)
        line = {"round": server_round, "began": self.began, "ended": time.time()}
        line["replies"] = sum(not reply.has_error() for reply in replies)
        with self.report.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return super().aggregate_evaluate(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Send the model to every device, as many times as run_config says."""
    config = context.run_config
    devices = int(config["devices"])
    strategy = Noted(
        fraction_train=0.0,
        fraction_evaluate=1.0,
        min_evaluate_nodes=devices,
        min_available_nodes=devices,
    )
    strategy.report = Path(str(config["report"]))
    strategy.floats = int(float(config["megabytes"]) * 1e6) // 4
    first = ArrayRecord([np.zeros(strategy.floats, dtype=np.float32)])
    strategy.start(grid, first, num_rounds=int(config["rounds"]))
