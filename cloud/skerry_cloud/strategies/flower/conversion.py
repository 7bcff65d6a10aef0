"""Records as Flower's RecordDict and back, over the same bytes."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor, from_npy, npy_bytes

from skerry_cloud.blocks import copy, give_back, mapped
from skerry_cloud.runs.asker import Asker

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
        """Return the array as an .npy file, made anew each time: to keep it would be to hold it."""
        tensor = self.__dict__["tensor"]
        if tensor is None:
            return self.__dict__["npy"]  # type: ignore[no-any-return]
        made = npy_bytes(tensor)
        give_back(tensor.data)
        return made

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["npy"] = value
        self.__dict__["tensor"] = None

    def numpy(self) -> Any:
        """Return a fresh ndarray, as Flower does: the caller may change it."""
        tensor = self.__dict__["tensor"]
        return super().numpy() if tensor is None else copy(tensor)


def to_flower(records: Records) -> RecordDict:
    """Return Records as Flower's RecordDict; tensors stay where they are until asked for."""
    made = RecordDict()
    for name, tensors in records.arrays.items():
        made[name] = arrays_of(tensors)
    for name, metrics in records.metrics.items():
        made[name] = MetricRecord(dict(metrics))
    for name, configs in records.configs.items():
        made[name] = ConfigRecord(dict(configs))
    return made


def from_flower(content: RecordDict) -> Records:
    """Return Flower's RecordDict as Records, over the same bytes."""
    return Records(
        arrays={name: tensors_of(record) for name, record in content.array_records.items()},
        metrics={name: dict(record.items()) for name, record in content.metric_records.items()},
        configs={name: dict(record.items()) for name, record in content.config_records.items()},
    )


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Return an ArrayRecord's arrays as tensors, over the same bytes."""
    return {name: tensor_of(array) for name, array in record.items()}


def arrays_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as an ArrayRecord; they stay where they are until asked for."""
    record = ArrayRecord()
    for name, tensor in tensors.items():  # one by one: given a dict, it copies every array
        record[name] = _array(tensor)
    return record


def put_on_disk(record: ArrayRecord, asker: Asker) -> None:
    """Let a record's arrays lie on disk from now on; what they hold stays the same."""
    kept = asker.on_disk(Records(arrays={"arrays": tensors_of(record)}))
    for name, tensor in kept.arrays["arrays"].items():
        if mapped(tensor):
            record[name] = _array(tensor)


def _array(tensor: Tensor) -> Array:
    if tensor.stype:
        return Array(
            dtype=tensor.stype_dtype,
            shape=tuple(tensor.stype_shape),
            stype=tensor.stype,
            data=bytes(tensor.data),
        )
    return NumpyArray(tensor)


def tensor_of(array: Array) -> Tensor:
    """Return an array as a tensor over the same bytes; opaque when numpy has no such array."""
    if isinstance(array, NumpyArray) and array.__dict__["tensor"] is not None:
        return array.__dict__["tensor"]  # type: ignore[no-any-return]
    plain = from_npy(array.data) if array.stype == NPY else None
    if plain is not None:
        return plain
    return Tensor.opaque(array.data, array.stype, array.dtype, tuple(array.shape))
