"""The cloud's side: stock FedAvg, which notes when each round began and ended."""

import hashlib
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


class TimedFedAvg(FedAvg):
    """FedAvg with one JSON line a round in the report file: began, ended (seconds since 1970)."""

    report = Path("/dev/null")
    began = 0.0

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Any]:
        """Note the time, then do as FedAvg does."""
        self.began = time.time()
        return super().configure_train(*args, **kwargs)

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> Any:
        """Do as FedAvg does, then note the time."""
        replies = list(replies)
        result = super().aggregate_train(server_round, replies)
        with self.report.open("a") as file:
            line = {"round": server_round, "began": self.began, "ended": time.time()}
            line["replies"] = sum(not reply.has_error() for reply in replies)
            file.write(json.dumps(line) + "\n")
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that run_config asks for."""
    config = context.run_config
    floats = int(float(config["megabytes"]) * 1e6) // 4
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(floats // 4, dtype=np.float32) for _ in range(4)]
    devices = int(config["devices"])
    strategy = TimedFedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=devices,
        min_available_nodes=devices,
    )
    strategy.report = Path(str(config["report"]))
    result = strategy.start(grid, ArrayRecord(arrays), num_rounds=int(config["rounds"]))
    digest = hashlib.sha256(b"".join(a.tobytes() for a in result.arrays.to_numpy_ndarrays()))
    strategy.report.with_suffix(".sha256").write_text(digest.hexdigest())
