"""Unmodified Flower ClientApps: the only module of the edge that imports flwr.

Public API, but for two things (FLOWER.md 2.5): `TaskIdentity`, which messages read, and
`Message(metadata=…)`, which sets what a received message has.
"""

import sys
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor, from_npy, npy_bytes

from skerry_edge.apps import AppFailure, FailureCode
from skerry_edge.worker.messages import Job

SERVER_NODE = 1
"""The server's node id, by Flower's convention."""
NPY = "numpy.ndarray"


class NumpyArray(Array):  # type: ignore[misc]
    """An Array over a received tensor's bytes; its .npy form is made only when asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["tensor"] = tensor
        self.dtype = str(tensor.numpy().dtype)
        self.shape = tensor.shape
        self.stype = NPY

    @property
    def data(self) -> bytes:
        """Return the array as an .npy file."""
        if "npy" not in self.__dict__:
            self.__dict__["npy"] = npy_bytes(self.__dict__["tensor"])
        return self.__dict__["npy"]  # type: ignore[no-any-return]

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["npy"] = value
        self.__dict__["tensor"] = None

    def numpy(self) -> Any:
        """Return a fresh ndarray, as Flower does: the caller may change it."""
        tensor = self.__dict__["tensor"]
        return super().numpy() if tensor is None else tensor.numpy().copy()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as a plain Array: a view of a file has no life of its own."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


# An Array's object id (a digest over its parts) begins with the name of its class.
NumpyArray.__qualname__ = Array.__qualname__


class FlowerApp:
    """A ClientApp and how to call it."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app

    def handle(
        self, job: Job, content: Records, state: Records | None
    ) -> tuple[Records, Records | None]:
        """Call the app with the task as a Message; return its reply and Context.state."""
        TaskIdentity.run_id = job.flower_run
        TaskIdentity.node_id = job.node
        TaskIdentity.task_id = zlib.crc32(job.id.encode())
        context = Context(
            run_id=job.flower_run,
            node_id=job.node,
            node_config=dict(job.node_config),
            state=to_flower(state) if state else RecordDict(),
            run_config=dict(job.run_config),
        )
        reply = self._app(_message(job, to_flower(content)), context)
        if not isinstance(reply, Message):
            kind = type(reply).__name__
            raise AppFailure(FailureCode.RAISED, f"the ClientApp returned {kind}, not a Message")
        if reply.has_error():
            reason = reply.error.reason or "the ClientApp answered with an error"
            raise AppFailure(reply.error.code or FailureCode.RAISED, reason)
        kept = from_flower(context.state) if len(context.state) else None
        return from_flower(reply.content), kept


def load(job: Job) -> FlowerApp:
    """Return the ClientApp at the job's "module:attribute" in its bundle."""
    module, _, attribute = job.entry.partition(":")
    if not module or not attribute:
        reason = f'the client app is {job.entry!r}; expected "module:attribute"'
        raise AppFailure(FailureCode.LOAD, reason)
    if job.app not in sys.path:
        sys.path.insert(0, job.app)
    found: Any = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not isinstance(found, ClientApp):
        reason = f"{job.entry} in {Path(job.app).name} is {type(found).__name__}, not a ClientApp"
        raise AppFailure(FailureCode.LOAD, reason)
    return FlowerApp(found)


def _message(job: Job, content: RecordDict) -> Message:
    metadata = Metadata(
        run_id=job.flower_run,
        message_id=job.message_id,
        src_node_id=SERVER_NODE,
        dst_node_id=job.node,
        reply_to_message_id="",
        group_id=job.group,
        created_at=job.created_unix_s,
        ttl=job.ttl_s,
        message_type=job.message_type,
    )
    return Message(content=content, metadata=metadata)


def to_flower(records: Records) -> RecordDict:
    """Return Records as Flower's RecordDict; tensors stay where they are until asked for."""
    made = RecordDict()
    for name, tensors in records.arrays.items():
        # One by one: given a dict, ArrayRecord copies every array.
        record = ArrayRecord()
        for key, tensor in tensors.items():
            record[key] = _array(tensor)
        made[name] = record
    for name, metrics in records.metrics.items():
        made[name] = MetricRecord(dict(metrics))
    for name, configs in records.configs.items():
        made[name] = ConfigRecord(dict(configs))
    return made


def from_flower(content: RecordDict) -> Records:
    """Return Flower's RecordDict as Records, over the same bytes."""
    return Records(
        arrays={
            name: {key: _tensor(array) for key, array in record.items()}
            for name, record in content.array_records.items()
        },
        metrics={name: _plain(record) for name, record in content.metric_records.items()},
        configs={name: _plain(record) for name, record in content.config_records.items()},
    )


def _array(tensor: Tensor) -> Array:
    if tensor.stype:
        return Array(
            dtype=tensor.stype_dtype,
            shape=tuple(tensor.stype_shape),
            stype=tensor.stype,
            data=bytes(tensor.data),
        )
    return NumpyArray(tensor)


def _tensor(array: Array) -> Tensor:
    if isinstance(array, NumpyArray) and array.__dict__["tensor"] is not None:
        return array.__dict__["tensor"]  # type: ignore[no-any-return]
    plain = from_npy(array.data) if array.stype == NPY else None
    if plain is not None:
        return plain
    return Tensor.opaque(array.data, array.stype, array.dtype, tuple(array.shape))


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict(record.items())
