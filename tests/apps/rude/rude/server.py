"""A server side that behaves as `server` says."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    match context.run_config["server"]:
        case "raise":
            raise ValueError("no such thing")
        case "exit":
            print("about to leave")
            os._exit(7)
        case "hang":
            time.sleep(3600)
        case "flood":
            while True:
                sys.stdout.write("noise " * 1000 + "\n")
        case "memory":
            held = [np.ones(50_000_000) for _ in range(20)]
            time.sleep(3600)
            del held
        case "fork":
            if os.fork() == 0:
                os.setsid()
                time.sleep(3600)
            os._exit(1)
        case "nonsense":
            for path in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    os.write(int(path.name), b"\xff" * 64)
            time.sleep(3600)
        case "peek":
            Path(context.run_config["peek"]).read_bytes()
        case "exit-0":
            sys.exit(0)
    want = context.run_config["want"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=want, min_available_nodes=want)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(4, dtype=np.float32)]),
        num_rounds=2,
        timeout=60,
    )
    arrays = [array.tolist() for array in result.arrays.to_numpy_ndarrays()]
    Path("results.json").write_text(json.dumps(arrays))
