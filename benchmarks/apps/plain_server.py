"""An inference server as a tutorial writes it: FastAPI, pydantic, onnxruntime."""

import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("THREADS", "0"))  # 0: as it comes, every core
session = onnxruntime.InferenceSession(
    os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
)
app = FastAPI()


class Tensor(BaseModel):
    """One input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    """All inputs."""

    inputs: list[Tensor]


@app.post("/v2/models/{name}/infer")
def infer(name: str, request: Request) -> dict[str, Any]:
    """Answer one request."""
    feed = {one.name: np.array(one.data, np.float32).reshape(one.shape) for one in request.inputs}
    found = session.run(None, feed)
    outputs = [
        {
            "name": one.name,
            "shape": list(made.shape),
            "datatype": "FP32",
            "data": made.ravel().tolist(),
        }
        for one, made in zip(session.get_outputs(), found, strict=True)
    ]
    return {"model_name": name, "outputs": outputs}
