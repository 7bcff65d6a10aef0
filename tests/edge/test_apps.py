"""What a worker makes of native and Flower apps, called as the worker calls them."""

import copy
import textwrap
from collections.abc import Callable
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from skerry_edge.apps import App, AppFailure, flower, load_app, native
from skerry_edge.worker.messages import Job
from skerry_protos.errors import SkerryError
from skerry_protos.records import Records, decode, to_bytes
from skerry_protos.tensors import DType, Tensor
from skerry_protos.weights import load_tensors, tensors_of

MakeApp = Callable[..., tuple[App, Job]]

W = np.array([1, 2, 3], np.float32)
ASKED = Records(
    arrays={"arrays": {"w": Tensor.of(W)}}, configs={"config": {"server-round": 2, "lr": 0.5}}
)


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeApp:
    """Return a function that loads an app from source, as a module of its own name."""
    monkeypatch.setattr("sys.path", [*__import__("sys").path])

    def make(
        source: str, *, kind: str = "native", attribute: str = "", **other: Any
    ) -> tuple[App, Job]:
        name = f"app_{abs(hash((source, str(tmp_path))))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        values: dict[str, Any] = {
            "id": "t",
            "kind": kind,
            "app": str(tmp_path),
            "entry": f"{name}:{attribute}" if attribute else name,
            "message_type": "train",
            "content": "",
            "reply": "",
            "node": 7,
            "flower_run": 5,
            "run": "r",
            "device": "d",
            "message_id": "m",
            "created_unix_s": 1e9,
            "ttl_s": 3600.0,
            "run_config": {"lr": 0.1, "epochs": 2},
            "node_config": {"partition-id": 3, "num-partitions": 8},
            "labels": {"site": "north"},
        }
        invalidate_caches()
        job = Job(**(values | other))
        return load_app(job), job

    return make


FLOWER = """
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message
    from flwr.app import MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    app = ClientApp()
"""


def test_a_client_app_sees_its_message_and_context_and_keeps_state(make_app: MakeApp) -> None:
    app, job = make_app(
        FLOWER
        + """
    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen = {
            "run": context.run_id, "node": context.node_id,
            "round": message.content["config"]["server-round"],
            "part": context.node_config["partition-id"], "epochs": context.run_config["epochs"],
            "to": message.metadata.dst_node_id, "from": message.metadata.src_node_id,
            "before": context.state["own"]["n"] if "own" in context.state else 0,
        }
        context.state["own"] = ConfigRecord({"n": seen["before"] + 1, "b": b"x", "l": [1.5]})
        arrays = [a + 1 for a in message.content["arrays"].to_numpy_ndarrays()]
        reply = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(seen)})
        return Message(reply, reply_to=message)
""",
        kind="flower",
        attribute="app",
    )
    reply, state = app.handle(job, ASKED, None)
    assert reply.metrics["metrics"] == {
        "run": 5, "node": 7, "round": 2, "part": 3, "epochs": 2, "to": 7, "from": 1, "before": 0,
    }  # fmt: skip
    assert reply.arrays["arrays"]["0"].numpy().tolist() == [2, 3, 4]
    assert state is not None
    kept = decode(to_bytes(state))  # as it comes back from the disk
    reply, state = app.handle(job, ASKED, kept)
    assert reply.metrics["metrics"]["before"] == 1
    assert state is not None
    assert state.configs["own"] == {"n": 2, "b": b"x", "l": [1.5]}


def test_an_error_reply_keeps_its_code(make_app: MakeApp) -> None:
    app, job = make_app(
        FLOWER
        + """
    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(Error(6, "the mod wants more"), reply_to=message)
""",
        kind="flower",
        attribute="app",
    )
    with pytest.raises(AppFailure, match="the mod wants more") as failure:
        app.handle(job, ASKED, None)
    assert failure.value.code == 6


def test_the_clipping_mod_reports_its_missing_precondition(make_app: MakeApp) -> None:
    app, job = make_app(
        """
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.clientapp.mod import fixedclipping_mod
    app = ClientApp(mods=[fixedclipping_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)
""",
        kind="flower",
        attribute="app",
    )
    with pytest.raises((AppFailure, KeyError)):
        app.handle(job, ASKED, None)


@pytest.mark.parametrize(
    ("source", "attribute", "says"),
    [
        ("x = 3", "x", "is int, not a ClientApp"),
        ("x = 3", "", 'expected "module:attribute"'),
    ],
)
def test_what_is_no_client_app_does_not_load(
    make_app: MakeApp, source: str, attribute: str, says: str
) -> None:
    with pytest.raises(AppFailure, match=says) as failure:
        make_app(source, kind="flower", attribute=attribute)
    assert failure.value.code == 1


def test_arrays_pass_unhurt_and_without_a_needless_copy() -> None:
    big = np.arange(1000, dtype=np.float32)
    made = flower.to_flower(Records(arrays={"arrays": {"w": Tensor.of(big)}}))
    array = made["arrays"]["w"]
    assert array.data == Array(big).data
    assert array.object_id == Array(big).object_id
    fresh = array.numpy()
    fresh += 1  # the app may change what it was given
    assert big[0] == 0
    back = flower.from_flower(made).arrays["arrays"]["w"]
    assert np.shares_memory(back.numpy(), big)
    assert copy.deepcopy(made)["arrays"]["w"].numpy().tolist() == big.tolist()
    assert made["arrays"].count_bytes() == ArrayRecord({"w": Array(big)}).count_bytes()
    assert made["arrays"].to_torch_state_dict(keep_input=True)["w"].sum() == big.sum()


@pytest.mark.parametrize(
    "array",
    [
        Array(np.array(3.5)),
        Array(np.zeros((0, 3), np.int8)),
        Array(np.asfortranarray(np.arange(6).reshape(2, 3))),
        Array(np.arange(3, dtype=">i4")),
        Array(np.array(["a", "bc"])),
        Array(dtype="mine", shape=(2, 2), stype="zstd", data=b"\x00\x01opaque"),
    ],
)
def test_every_kind_of_array_comes_back_as_it_went(array: Array) -> None:
    content = flower.from_flower(RecordDict({"arrays": ArrayRecord({"x": array})}))
    back = flower.to_flower(decode(to_bytes(content)))["arrays"]["x"]
    assert (back.stype, tuple(back.shape)) == (array.stype, tuple(array.shape))
    if array.stype == "numpy.ndarray":
        assert back.numpy().tolist() == array.numpy().tolist()
        assert back.numpy().dtype == array.numpy().dtype
    else:
        assert (back.data, back.dtype) == (array.data, array.dtype)


def test_a_torch_model_is_trained_in_place(make_app: MakeApp) -> None:
    app, job = make_app(
        """
    import torch
    def model():
        net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
        return net.to(torch.float32)
    def data(device):
        assert (device.partition, device.partitions, device.labels["site"]) == (3, 8, "north")
        return torch.utils.data.DataLoader(torch.arange(10), batch_size=4)
    def train(model, data, config):
        assert config["lr"] == 0.5 and config["epochs"] == 2  # the round's over the run's
        with torch.no_grad():
            model[0].weight += 1
        return {"loss": torch.tensor(0.25), "per class": [torch.tensor(1), 2.5]}
    def evaluate(model, data):
        return {"accuracy": 0.5, "num_examples": 3}
"""
    )
    net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
    arrays = tensors_of(net)
    asked = decode(to_bytes(Records(arrays={"arrays": arrays}, configs=ASKED.configs)))
    reply, state = app.handle(job, asked, None)
    assert state is None
    assert list(reply.arrays["arrays"]) == list(net.state_dict())
    weight = reply.arrays["arrays"]["0.weight"].numpy()
    assert np.allclose(weight, net.state_dict()["0.weight"].numpy() + 1)
    assert reply.metrics["metrics"] == {"loss": 0.25, "per class": [1, 2.5], "num-examples": 10}
    evaluating = Job(**({n: getattr(job, n) for n in Job.__slots__} | {"message_type": "evaluate"}))
    reply, _ = app.handle(evaluating, asked, None)
    assert reply.arrays == {}
    assert reply.metrics["metrics"] == {"accuracy": 0.5, "num-examples": 3}


class Holder(torch.nn.Module):
    """A module with nothing but these buffers."""

    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_torch_type_comes_back_as_it_went(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    holder = Holder(
        x=value.clone(), empty=torch.zeros(0, 2, dtype=dtype), scalar=torch.ones((), dtype=dtype)
    )
    tensors = decode(to_bytes(Records(arrays={"arrays": tensors_of(holder)})))
    buffers = dict(holder.named_buffers())
    buffers["x"].zero_()
    load_tensors(holder, tensors.arrays["arrays"])
    assert torch.equal(buffers["x"], value)
    assert buffers["scalar"] == 1


def test_bfloat16_is_its_own_type() -> None:
    holder = Holder(x=torch.ones(3, dtype=torch.bfloat16))
    assert tensors_of(holder)["x"].dtype is DType.BFLOAT16


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ([1, 2, 3], 3),
        ((np.zeros((5, 2)), np.zeros(5)), 5),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, 4),
        (torch.utils.data.DataLoader(list(range(7)), batch_size=3), 7),  # type: ignore[arg-type]
        (torch.utils.data.TensorDataset(torch.zeros(6, 2)), 6),
        (3.5, 1),
    ],
)
def test_examples_are_counted(data: object, count: int) -> None:
    assert native.examples_in(data) == count


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def model(): return 3\ndef data(device): return []", "model() returned int"),
        ("def data(device): return []", "has no function model()"),
        ("def model(): return {'v': 1}\ndef data(d): return []", "has an array 'v'"),
        (
            "def model(): return {}\ndef data(d): return []\n"
            "def train(m, d, c): return {'x': 'high'}",
            "have an array 'w'",
        ),
    ],
)
def test_a_native_app_that_does_not_fit_says_how(make_app: MakeApp, source: str, says: str) -> None:
    app, job = make_app(source)
    with pytest.raises((AppFailure, SkerryError)) as failure:
        app.handle(job, ASKED, None)
    assert says in str(failure.value)


def test_a_metric_that_is_no_number_is_named() -> None:
    with pytest.raises(AppFailure, match="metric 'x' is str; expected a number"):
        native.metrics_of({"x": "high"}, [])


def test_a_seed_makes_a_round_repeatable_and_devices_differ(make_app: MakeApp) -> None:
    app, job = make_app(
        """
    import numpy as np
    def model(): return {"w": np.zeros(3)}
    def data(device): return [1]
    def train(model, data, config): return {"dice": float(np.random.rand())}
"""
    )
    asked = Records(arrays=ASKED.arrays, configs={"config": {"seed": 3}})

    def dice(**other: object) -> object:
        values = {name: getattr(job, name) for name in Job.__slots__} | other
        return app.handle(Job(**values), asked, None)[0].metrics["metrics"]["dice"]

    assert dice() == dice()
    assert dice() != dice(node=8)
    assert dice() != dice(round=9)
