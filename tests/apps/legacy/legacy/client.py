"""Flower's older client: a NumPyClient, behind secure aggregation's mod, which idles without it."""

import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    def __init__(self, number):
        self.number = number

    def get_parameters(self, config):
        return [np.zeros(3, dtype=np.float32)]

    def fit(self, parameters, config):
        return [p + 1.0 for p in parameters], 10, {"seen": float(self.number)}

    def evaluate(self, parameters, config):
        return float(parameters[0].mean()), 10, {"accuracy": 0.5}


def client_fn(context):
    return Client(context.node_config["partition-id"]).to_client()


def secure(msg, context, call_next):
    """Mask with SecAgg+ when the run wants it."""
    if context.run_config["secure"] and msg.metadata.message_type == "train":
        return secaggplus_mod(msg, context, call_next)
    return call_next(msg, context)


app = ClientApp(client_fn=client_fn, mods=[secure])
