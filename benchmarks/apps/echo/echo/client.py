"""The device's side: add one thousandth to each array and return it."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001
    """Return the arrays, each changed a little."""
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    changed = [array + array.dtype.type(0.001) for array in arrays]
    content = RecordDict(
        {"arrays": ArrayRecord(changed), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, reply_to=message)
