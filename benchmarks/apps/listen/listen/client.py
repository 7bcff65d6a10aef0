"""The device's side: look at the model and say how large it is."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.evaluate()
def evaluate(message: Message, _context: Context) -> Message:
    """Return the number of bytes that came."""
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    metrics = {"num-examples": 1, "bytes": float(sum(array.nbytes for array in arrays))}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
