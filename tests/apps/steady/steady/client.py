"""What a device adds follows from its partition and the round; each training leaves a line."""

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg, context):
    number = int(msg.content["config"]["server-round"])
    partition = int(context.node_config["partition-id"])
    note(context, number, "begin")
    time.sleep(context.run_config["train_s"])
    dice = np.random.default_rng([partition, number])
    arrays = [
        (a + dice.standard_normal(a.shape)).astype(np.float32)
        for a in msg.content["arrays"].to_numpy_ndarrays()
    ]
    note(context, number, "end")
    metrics = {"num-examples": 10 + 7 * partition, "loss": float(dice.random())}
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=msg)


@app.evaluate()
def evaluate(msg, context):
    spread = float(np.abs(msg.content["arrays"].to_numpy_ndarrays()[0]).mean())
    metrics = {"num-examples": 10, "spread": spread}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def note(context, number, what):
    """Append one line: which round, what, when."""
    if not context.run_config["report"]:
        return
    line = json.dumps({"round": number, "what": what, "at": time.time()}) + "\n"
    name = f"device-{int(context.node_config['partition-id']) + 1}"
    path = Path(context.run_config["report"]) / name
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
