"""A Flower ClientApp whose answers are known; the mod is named by the message's config."""

import json

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)

MODS = {
    "fixed": fixedclipping_mod,
    "adaptive": adaptiveclipping_mod,
    "sizes": lambda msg, ctx, nxt: message_size_mod(
        msg, ctx, lambda m, c: arrays_size_mod(m, c, nxt)
    ),
    "local-dp": LocalDpMod(1000.0, 1e-6, 100.0, 1e-5),
}


def chosen(msg, context, call_next):
    """Call the mod that the message names, if it names one."""
    config = msg.content.config_records.get("config", {})
    mod = MODS.get(config.get("mod"))
    return mod(msg, context, call_next) if mod else call_next(msg, context)


app = ClientApp(mods=[chosen])


def target(context):
    return float(context.node_config["partition-id"] + 1) ** 2


@app.train()
def train(msg, context):
    if msg.content["config"].get("trees"):
        return boost(msg, context)
    count = context.state.metric_records.get("count", MetricRecord({"calls": 0}))
    count["calls"] += 1
    context.state["count"] = count
    wanted = target(context)
    arrays = [a + 0.5 * (wanted - a) for a in msg.content["arrays"].to_numpy_ndarrays()]
    arrays = [a.astype(np.float32) for a in arrays]
    metrics = {
        "num-examples": context.node_config["partition-id"] + 1,
        "train_loss": 1.0 / wanted,
        "calls": float(count["calls"]),
    }
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=msg)


@app.evaluate()
def evaluate(msg, context):
    error = float(abs(msg.content["arrays"].to_numpy_ndarrays()[0].mean() - target(context)))
    metrics = {"num-examples": context.node_config["partition-id"] + 1, "error": error}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


@app.query("hello")
def hello(msg, context):
    """Answer a query with every kind of value there is."""
    asked = msg.content["question"]
    config = {
        "text": str(asked["text"]) + "!",
        "bytes": bytes(asked["bytes"]) + b"\x00\xff",
        "flag": not asked["flag"],
        "texts": ["a", "b"],
        "floats": [1.5, -0.0],
        "empty": [],
        "partition": context.node_config["partition-id"],
        "nested": context.run_config["nested.value"],
    }
    return Message(RecordDict({"answer": ConfigRecord(config)}), reply_to=msg)


def boost(msg, context):
    """Answer as an XGBoost app does: a model of one tree, as JSON bytes of any length."""
    number = context.node_config["partition-id"]
    tree = {"id": 0, "split": "x" * (10 + 7 * number)}
    model = {
        "gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"},
        "iteration_indptr": [0, 1],
        "trees": [tree],
        "tree_info": [0],
    }
    data = json.dumps({"learner": {"gradient_booster": {"model": model}}}).encode()
    arrays = ArrayRecord([np.frombuffer(data, dtype=np.uint8)])
    metrics = MetricRecord({"num-examples": number + 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)
