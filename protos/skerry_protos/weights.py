"""A native app's model as named tensors and back: the same names on both sides of the water.

A model is a torch module (or anything with state_dict and load_state_dict), or a dict or list of
arrays. torch is imported only for what is already torch's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from skerry_protos.errors import ConfigError, PeerError
from skerry_protos.tensors import DType, Tensor

_BITS = {
    "bfloat16": (DType.BFLOAT16, "int16"),
    "float8_e4m3fn": (DType.FLOAT8_E4M3FN, "uint8"),
    "float8_e5m2": (DType.FLOAT8_E5M2, "uint8"),
}


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Return the model's weights as tensors, over the same memory where it is on the CPU."""
    if hasattr(model, "state_dict"):
        return {str(name): tensor_of(value) for name, value in model.state_dict().items()}
    if isinstance(model, dict):
        return {str(name): tensor_of(value) for name, value in model.items()}
    if isinstance(model, list):
        return {str(place): tensor_of(value) for place, value in enumerate(model)}
    raise _not_a_model(model)


def tensor_of(value: Any) -> Tensor:
    """Return a torch tensor or what numpy takes as a Tensor."""
    import numpy as np

    if not hasattr(value, "detach"):
        return Tensor.of(np.asarray(value))
    import torch

    plain = value.detach().cpu().contiguous()
    if (name := str(plain.dtype).removeprefix("torch.")) in _BITS:
        dtype, bits = _BITS[name]
        return Tensor.of_bits(
            dtype, plain.view(getattr(torch, bits)).numpy().view(dtype.numpy_code)
        )
    return Tensor.of(plain.numpy())


def load_tensors(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors into the model, in place; raise PeerError when they are not its own."""
    if hasattr(model, "load_state_dict"):
        own = model.state_dict()
        _same_names(tensors, own)
        for name, value in own.items():
            if hasattr(value, "shape") and tuple(value.shape) != tensors[name].shape:
                raise PeerError(
                    f"weight {name!r} has the shape {tensors[name].shape}; "
                    f"the model's {tuple(value.shape)}"
                )
        model.load_state_dict(
            {
                name: torch_of(tensors[name]) if hasattr(value, "detach") else _copy(tensors[name])
                for name, value in own.items()
            }
        )
    elif isinstance(model, dict):
        _same_names(tensors, map(str, model))
        model.update({name: _copy(tensors[str(name)]) for name in model})
    elif isinstance(model, list):
        _same_names(tensors, map(str, range(len(model))))
        model[:] = [_copy(tensors[str(place)]) for place in range(len(model))]
    else:
        raise _not_a_model(model)


def torch_of(tensor: Tensor) -> Any:
    """Return a torch tensor over the same bytes, or over a copy when they are read-only."""
    import numpy as np
    import torch

    dtype = getattr(torch, tensor.dtype.name.lower())
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = np.frombuffer(tensor.data, dtype=np.uint8)
    return (
        torch.from_numpy(flat if flat.flags.writeable else flat.copy())
        .view(dtype)
        .reshape(tensor.shape)
    )


def _copy(tensor: Tensor) -> Any:
    return tensor.numpy().copy()


def _same_names(tensors: Iterable[str], expected: Iterable[str]) -> None:
    got, own = set(tensors), set(expected)
    if lacking := sorted(own - got):
        raise PeerError(f"the model has an array {lacking[0]!r}, the weights that came do not")
    if odd := sorted(got - own):
        raise PeerError(f"the weights that came have an array {odd[0]!r}, the model does not")


def _not_a_model(model: Any) -> ConfigError:
    return ConfigError(
        f"model() returned {type(model).__name__}",
        hint="expected a torch module, or a dict or list of NumPy arrays",
    )
