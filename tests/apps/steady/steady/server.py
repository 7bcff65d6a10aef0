"""Server sides that a restart may hurt: state in strategies, closures and loops."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
)

app = ServerApp()
FEW = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
TOLD = []


class Slower(FedAvg):
    """A strategy of the app's own: it remembers, draws, and changes what it sends."""

    def __init__(self, **given):
        super().__init__(**given)
        self.seen = []
        self.dice = np.random.default_rng(5)

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] = config["lr"] * 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.seen.append((server_round, float(self.dice.random()), float(np.random.random())))
        return arrays, metrics


class Closed(Slower):
    """One that holds what nobody can keep."""

    def __init__(self, **given):
        super().__init__(**given)
        self.lines = iter(range(100))

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.seen.append(next(self.lines))
        return arrays, metrics


STRATEGIES = {
    "fedavg": FedAvg,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedavgm": lambda **given: FedAvgM(server_momentum=0.9, **given),
    "private": lambda **given: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(**given), noise_multiplier=0.1, num_sampled_clients=2
    ),
    "slower": Slower,
    "closed": Closed,
}


@app.main()
def main(grid, context):
    how, rounds = context.run_config["how"], context.run_config["num-server-rounds"]
    dice = np.random.standard_normal(context.run_config["size"]).astype(np.float32)
    start = ArrayRecord([dice, np.ones(4, dtype=np.float32)])
    if how in STRATEGIES:
        found = strategy(grid, STRATEGIES[how](**FEW), start, rounds)
    else:
        found = {"send": send, "pull": pull}[how](grid, start, rounds)
    Path("result.json").write_text(json.dumps(found))


def strategy(grid, made, start, rounds):
    best, spreads = {"round": -1, "spread": -1.0}, []

    def evaluate(number, arrays):
        spread = float(np.abs(arrays.to_numpy_ndarrays()[0]).mean())
        spreads.append(spread)
        TOLD.append(number)
        if spread > best["spread"]:
            best.update(round=number, spread=spread)
        return MetricRecord({"spread": spread})

    result = made.start(
        grid=grid,
        initial_arrays=start,
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": 1.0}),
        timeout=60,
        evaluate_fn=evaluate,
    )
    return {
        "arrays": digest(result.arrays),
        "train": {str(n): dict(m) for n, m in result.train_metrics_clientapp.items()},
        "evaluate": {str(n): dict(m) for n, m in result.evaluate_metrics_clientapp.items()},
        "server": {str(n): dict(m) for n, m in result.evaluate_metrics_serverapp.items()},
        "best": best,
        "spreads": spreads,
        "told": TOLD,
        "seen": getattr(made, "seen", []),
        "next": float(np.random.random()),
    }


def digest(record):
    sha = hashlib.sha256()
    for array in record.to_numpy_ndarrays():
        sha.update(array.tobytes())
    return sha.hexdigest()


def messages(grid, arrays, number):
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number})})
    return [Message(content, node, "train", ttl=60) for node in sorted(grid.get_node_ids())]


def mean(replies):
    many = [reply.content["arrays"].to_numpy_ndarrays() for reply in replies]
    return ArrayRecord([np.mean(few, axis=0) for few in zip(*many, strict=True)])


def send(grid, arrays, rounds):
    """A loop of its own: no strategy, so nothing to skip."""
    for number in range(1, rounds + 1):
        arrays = mean(list(grid.send_and_receive(messages(grid, arrays, number), timeout=60)))
    grid.send_and_receive([Message(RecordDict({"arrays": arrays}), 1, "query", ttl=1)], timeout=1)
    return {"arrays": digest(arrays)}


def pull(grid, arrays, rounds):
    """As they come: the mean depends on who was first."""
    order = []
    for number in range(1, rounds + 1):
        ids = list(grid.push_messages(messages(grid, arrays, number)))
        left = set(ids)
        while left:
            for reply in grid.pull_messages(list(left)):
                place = ids.index(reply.metadata.reply_to_message_id)
                left.discard(ids[place])
                order.append(place)
                old, new = arrays.to_numpy_ndarrays(), reply.content["arrays"].to_numpy_ndarrays()
                arrays = ArrayRecord([0.7 * a + 0.3 * b for a, b in zip(old, new, strict=True)])
            time.sleep(0.02)
    return {"arrays": digest(arrays), "turns": len(order)}
