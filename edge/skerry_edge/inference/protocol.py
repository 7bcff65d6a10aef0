"""The Open Inference Protocol v2 (KServe), REST form: requests in, answers out, as bytes.

Source: Open Inference Protocol, "Inference Protocol REST"; binary tensors by its binary data
extension (the header Inference-Header-Content-Length, `binary_data_size`).
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from skerry_edge.inference.runtimes import Arrays, InputError, Spec

DATATYPES = {
    "BOOL": np.dtype(np.bool_),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    **{
        f"{sign}INT{bits}": np.dtype(f"<{kind}{bits // 8}")
        for sign, kind in (("", "i"), ("U", "u"))
        for bits in (8, 16, 32, 64)
    },
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
INPUTS_LIMIT, RANK_LIMIT = 64, 16
PACKED = {DATATYPES["FP16"]: "e", DATATYPES["FP32"]: "f", DATATYPES["FP64"]: "d"}
PACKED_LIMIT = 1 << 16
"""Numbers that are packed at once; more would need as large a tuple beside their list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked: arrays by the names of the model's inputs."""

    inputs: dict[str, NDArray[Any]]
    id: str = ""
    outputs: tuple[str, ...] = ()
    """The outputs wanted; empty: all."""
    binary: bool = False
    """Answer with binary tensors."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many inputs of the model it holds."""
        return len(next(iter(self.inputs.values())))


def parse(body: bytes, json_bytes: int | None, inputs: Sequence[Spec]) -> Request:
    """Return the request in `body`; raise InputError naming what is wrong and what was expected.

    `json_bytes` is what Inference-Header-Content-Length says, None without it.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise InputError(f"Inference-Header-Content-Length is {json_bytes} of {len(body)} bytes")
    try:
        said = orjson.loads(body if json_bytes is None else memoryview(body)[:json_bytes])
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise InputError("the request must be a JSON object")
    given = said.get("inputs")
    if not isinstance(given, list) or not 0 < len(given) <= INPUTS_LIMIT:
        raise InputError(f"inputs must be a list of 1 to {INPUTS_LIMIT} tensors")
    binary = memoryview(body)[json_bytes:] if json_bytes is not None else memoryview(b"")
    known = {spec.name: spec for spec in inputs}
    arrays: dict[str, NDArray[Any]] = {}
    for one in given:
        if not isinstance(one, dict):
            raise InputError("each input must be a JSON object")
        name = one.get("name")
        if not isinstance(name, str) or name not in known:
            raise InputError(f"the model has no input {name!r}; it has {sorted(known)}")
        values, binary = _tensor(one, known[name], binary)
        arrays[name] = values
    if len(binary):
        raise InputError(f"{len(binary)} bytes follow the last binary tensor")
    for name in known:
        if name not in arrays:
            raise InputError(f"the input {name!r} is missing")
    if len({len(values) for values in arrays.values()}) != 1:
        raise InputError("the inputs differ in their first size, the number of rows")
    wanted, any_binary = _wanted(said)
    parameters = said.get("parameters", {})
    return Request(
        inputs=arrays,
        id=str(said.get("id", ""))[:200],
        outputs=wanted,
        binary=any_binary,
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _tensor(
    one: Mapping[str, Any], spec: Spec, binary: memoryview
) -> tuple[NDArray[Any], memoryview]:
    """Return one input, checked, and the binary data behind it."""
    name, shape = spec.name, one.get("shape")
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= RANK_LIMIT
        or not all(isinstance(size, int) and 0 <= size < 2**31 for size in shape)
    ):
        raise InputError(f"input {name!r}: shape must be a list of sizes, not {shape!r:.80}")
    _require_shape(name, shape, spec)
    datatype = one.get("datatype")
    if datatype != NAMES[spec.dtype]:
        raise InputError(
            f"input {name!r}: datatype is {datatype!r:.40}; the model takes {NAMES[spec.dtype]}"
        )
    parameters = one.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        expected = math.prod(shape) * spec.dtype.itemsize
        if size != expected or len(binary) < expected:
            raise InputError(
                f"input {name!r}: binary_data_size is {size!r:.40} and {len(binary)} bytes came; "
                f"shape and datatype need {expected}"
            )
        flat = _finite(name, np.frombuffer(binary[:expected], dtype=spec.dtype))
        binary = binary[expected:]
    else:
        flat = _numbers(name, one.get("data"), spec)
    if flat.size != math.prod(shape):
        raise InputError(
            f"input {name!r} has {flat.size} values; shape {shape} needs {math.prod(shape)}"
        )
    return flat.reshape(shape), binary


def _numbers(name: str, data: object, spec: Spec) -> NDArray[Any]:
    """Return JSON data (flat, or nested as its shape) as a flat array."""
    if not isinstance(data, list):
        raise InputError(f"input {name!r}: data must be a list of numbers")
    packed = _packed(data, spec.dtype)
    if packed is not None:
        return packed
    try:
        values = np.asarray(data)
    except ValueError as error:
        raise InputError(f"input {name!r}: data is nested unevenly") from error
    if values.size == 0:
        return np.empty(0, dtype=spec.dtype)
    if values.dtype.kind not in ("b" if spec.dtype.kind == "b" else "iuf"):
        raise InputError(f"input {name!r}: data holds what is no {NAMES[spec.dtype]}")
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        if values.dtype.kind == "f" or values.min() < limits.min or values.max() > limits.max:
            raise InputError(
                f"input {name!r}: data must be whole numbers from {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):
        return _finite(name, values.astype(spec.dtype).reshape(-1))


def _finite(name: str, flat: NDArray[Any]) -> NDArray[Any]:
    """Return the numbers; raise InputError for the first that is none, or infinite."""
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        at = int(np.flatnonzero(~np.isfinite(flat))[0])
        raise InputError(f"input {name!r} is not finite: value {at} is {flat[at]}")
    return flat


def _packed(data: list[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Return flat, finite numbers as an array, or None where they are not that, or too many.

    NumPy first looks for a common type, and gives the interpreter up in each step over more than
    500 numbers: the model's threads take it, and the loop waits for it three times a request.
    """
    code = PACKED.get(dtype)
    if code is None or not 0 < len(data) <= PACKED_LIMIT or isinstance(data[0], bool):
        return None
    try:
        packed = struct.pack(f"<{len(data)}{code}", *data)
        if not math.isfinite(sum(data)):
            return None
    except (struct.error, OverflowError, TypeError):
        return None
    return np.frombuffer(packed, dtype=dtype)


def _require_shape(name: str, shape: Sequence[int], spec: Spec) -> None:
    fits = len(shape) == len(spec.shape) and all(
        expected in (None, size) for size, expected in zip(shape, spec.shape, strict=True)
    )
    if not fits or shape[0] == 0:
        wanted = [-1 if size is None else size for size in spec.shape]
        raise InputError(f"input {name!r} has shape {list(shape)}; the model takes {wanted}")


def _wanted(said: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    outputs = said.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise InputError("outputs must be a list of JSON objects")
    names = tuple(str(one.get("name", ""))[:200] for one in outputs)
    marks = [one.get("parameters", {}) for one in outputs] + [said.get("parameters", {})]
    binary = any(
        isinstance(mark, dict) and (mark.get("binary_data") or mark.get("binary_data_output"))
        for mark in marks
    )
    return names, binary


def answer(
    request: Request, outputs: Arrays, *, model: str, version: str, parameters: Mapping[str, Any]
) -> tuple[bytes, int | None]:
    """Return the answer's body, and the length of its JSON part when tensors follow it."""
    if request.outputs:
        for name in request.outputs:
            if name not in outputs:
                raise InputError(f"the model has no output {name!r}; it has {sorted(outputs)}")
        outputs = {name: outputs[name] for name in request.outputs}
    said: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        said["id"] = request.id
    if parameters:
        said["parameters"] = parameters
    tensors, tail = [], []
    for name, values in outputs.items():
        one: dict[str, Any] = {"name": name, "shape": list(values.shape)}
        if values.dtype.kind == "U":
            one |= {"datatype": "BYTES", "data": values.reshape(-1).tolist()}
        else:
            one["datatype"] = NAMES[values.dtype]
            if request.binary:
                raw = np.ascontiguousarray(values).tobytes()
                one["parameters"] = {"binary_data_size": len(raw)}
                tail.append(raw)
            else:
                one["data"] = np.ascontiguousarray(values).reshape(-1)
        tensors.append(one)
    said["outputs"] = tensors
    head = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def tensor_metadata(spec: Spec) -> dict[str, Any]:
    """Return a tensor as the model's metadata names it; -1 where the size is free."""
    return {
        "name": spec.name,
        "datatype": NAMES[spec.dtype],
        "shape": [-1 if size is None else size for size in spec.shape],
    }
