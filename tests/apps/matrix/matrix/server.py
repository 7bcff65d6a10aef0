"""Runs the cases that run_config names, one after the other, and writes what they came to."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

from matrix.cases import CASES, TREES

app = ServerApp()


def initial():
    return ArrayRecord([np.zeros((2, 3), dtype=np.float32), np.ones(4, dtype=np.float32)])


def run_case(grid, name, rounds):
    """Return what a case's strategy comes to, as plain values."""
    make, mod = CASES[name]
    config = {"mod": mod} if mod else {}
    result = make().start(
        grid=grid,
        initial_arrays=initial(),
        num_rounds=rounds,
        train_config=ConfigRecord(dict(config)),
        timeout=60,
    )
    return {
        "arrays": [array.tolist() for array in result.arrays.to_numpy_ndarrays()],
        "train": {str(n): dict(m) for n, m in result.train_metrics_clientapp.items()},
        "evaluate": {str(n): dict(m) for n, m in result.evaluate_metrics_clientapp.items()},
    }


def run_trees(grid, name):
    """Return the model that a strategy for boosted trees makes."""
    result = TREES[name](fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.frombuffer(b"", dtype=np.uint8)]),
        num_rounds=2,
        train_config=ConfigRecord({"trees": 1}),
        timeout=60,
    )
    return json.loads(result.arrays["0"].numpy().tobytes())


def ask(grid):
    """Return what every node answers to a query, by send_and_receive and by push and pull."""
    question = {"text": "hello", "bytes": b"\x01", "flag": True}
    nodes = list(grid.get_node_ids())

    def messages():
        content = RecordDict({"question": ConfigRecord(question)})
        return [Message(content, node, "query.hello", ttl=60) for node in nodes]

    replies = grid.send_and_receive(messages(), timeout=60)
    again = list(replies) == list(replies)
    ids = list(grid.push_messages(messages()))
    pulled = []
    while len(pulled) < len(ids):
        pulled += grid.pull_messages(ids)
    stranger = grid.send_and_receive(
        [Message(RecordDict(), 12345, "query.hello", ttl=60)], timeout=60
    )
    answers = {r.metadata.src_node_id: r.content["answer"] for r in replies}
    return {
        "nodes": sorted(node.node_id for node in grid.get_nodes()),
        "iterable_twice": again,
        "answers": {
            str(node): {k: v.hex() if isinstance(v, bytes) else v for k, v in answer.items()}
            for node, answer in answers.items()
        },
        "pulled": sorted(r.metadata.src_node_id for r in pulled),
        "in_reply_to": sorted(r.metadata.reply_to_message_id for r in pulled) == sorted(ids),
        "stranger": [[r.error.code, r.error.reason] for r in stranger],
    }


@app.main()
def main(grid, context):
    found = {}
    for name in str(context.run_config["cases"]).split():
        if name == "query":
            found[name] = ask(grid)
        elif name in TREES:
            found[name] = run_trees(grid, name)
        else:
            found[name] = run_case(grid, name, context.run_config["num-server-rounds"])
    Path("results.json").write_text(json.dumps(found))
