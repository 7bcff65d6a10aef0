"""What each device does."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fashion.task import Images, evaluate, load_share, make_model, train

app = ClientApp()


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train the model that came on this device's share."""
    model, (data, _) = received(message), share(context)
    config = context.run_config
    loss, examples = train(
        model,
        data,
        epochs=config["local-epochs"],
        lr=config["learning-rate"],
        batch_size=config["batch-size"],
        most=config["images-a-round"],
        seed=message.content["config"]["server-round"],
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": examples}),
        }
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_here(message: Message, context: Context) -> Message:
    """Evaluate the model that came on this device's part of the test images."""
    model, (_, data) = received(message), share(context)
    loss, accuracy = evaluate(model, data)
    metrics = {"loss": loss, "accuracy": accuracy, "num-examples": len(data[1])}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def received(message: Message) -> nn.Module:
    """Return the model in a message."""
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def share(context: Context) -> tuple[Images, Images]:
    """Return this device's images; Skerry and Flower both say which part it has."""
    return load_share(
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        float(context.run_config["alpha"]),
    )
