"""The device's side: add a little of its own to each array and return it."""

import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the arrays, each changed a little, on each device by another amount."""
    step = 1e-3 + context.node_id % 10_000 * 1e-6
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    changed = [array + array.dtype.type(step) for array in arrays]
    if notes := str(context.run_config["notes"]):
        round_ = message.content.config_records["config"]["server-round"]
        with Path(notes).open("a") as file:
            file.write(f"{context.node_id} {round_} {time.time()}\n")
    content = RecordDict(
        {"arrays": ArrayRecord(changed), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, reply_to=message)
