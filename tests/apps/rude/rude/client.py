"""One device (partition 0) answers as `client` says; the others are well."""

import time

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg, context):
    arrays = [np.ones(4, dtype=np.float32)]
    metrics = {"num-examples": 1, "loss": 1.0}
    if context.node_config["partition-id"] == 0:
        match context.run_config["client"]:
            case "no-examples":
                del metrics["num-examples"]
            case "more-metrics":
                metrics["odd"] = 1.0
            case "more-arrays":
                arrays.append(np.ones(1, dtype=np.float32))
            case "shape":
                arrays = [np.ones(5, dtype=np.float32)]
            case "infinite":
                arrays[0][2] = np.inf
            case "raise":
                raise RuntimeError("the sensor is gone")
            case "slow":
                time.sleep(30)
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=msg)
