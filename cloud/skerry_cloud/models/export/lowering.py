"""What torch's layers become before the LiteRT converter sees them: fewer and larger operations.

The converter decomposes a layer as torch does, and small operations cost LiteRT as much as what
they compute: a step of a GRU is 18 of them. Here it has one product and one sigmoid for both of its
gates, and attention does without half of its transposes. Nothing is approximated; `to_litert`
compares the model before and after on its example all the same. (Layer normalisation is left as it
is: the converter merges its weights into the product that follows.)

It works by a mode of torch, as the layers are called, so the app's modules stay as they are. What
a layer is asked for beyond the plain case (masks, weights returned, packed sequences, projections)
is left to torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

STEPS_UP_TO = 256
"""Longer sequences are left to torch: every step becomes operations of the file."""


class Lowered(TorchFunctionMode):
    """Stands in for layers while a model is traced.

    `layers` off: only for what would be wrong otherwise.
    """

    def __init__(self, *, layers: bool = True) -> None:
        super().__init__()
        self._layers = layers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call what is asked for, or what stands in for it."""
        said = kwargs or {}
        if func is functional.interpolate and _by_whole_sizes(args, said):
            return _nearest_by_index(args, said)
        if self._layers:
            if func is functional.multi_head_attention_forward and _plain_attention(args, said):
                return _self_attention(args)
            if func is torch.gru and _plain_gru(args, said):
                return _gru(args)
        return func(*args, **said)


# The places of arguments of torch.nn.functional.multi_head_attention_forward, as it is called by
# nn.MultiheadAttention: the first thirteen by place, the others by name.
_PLACES = (
    "query", "key", "value", "embed_dim", "heads", "in_weight", "in_bias", "bias_k", "bias_v",
    "add_zero_attn", "dropout_p", "out_weight", "out_bias",
)  # fmt: skip


def _plain_attention(args: tuple[Any, ...], said: Mapping[str, Any]) -> bool:
    """Return whether a sequence attends to all of itself, and only the result is wanted."""
    if len(args) != len(_PLACES):
        return False
    by = dict(zip(_PLACES, args, strict=True))
    unusual = ("bias_k", "bias_v", "add_zero_attn")
    masked = ("key_padding_mask", "attn_mask", "static_k", "static_v")
    return (
        by["query"] is by["key"] is by["value"]
        and by["query"].dim() == 3
        and by["in_weight"] is not None
        and not any(by[name] is not None and by[name] is not False for name in unusual)
        and not any(said.get(name) is not None for name in masked)
        and not said.get("use_separate_proj_weight", False)
        and not said.get("need_weights", True)
        and not said.get("is_causal", False)
        and not (said.get("training", True) and by["dropout_p"])
    )


def _self_attention(args: tuple[Any, ...]) -> tuple[Tensor, None]:
    """Return the attention of a sequence (length x batch x width) to itself."""
    by = dict(zip(_PLACES, args, strict=True))
    heads = by["heads"]
    given = by["query"].transpose(0, 1)
    batch, length, width = given.shape
    each = width // heads
    made = functional.linear(given, by["in_weight"], by["in_bias"])
    made = made.reshape(batch, length, 3 * heads, each).transpose(1, 2)
    queries, keys, values = (made[:, at * heads : (at + 1) * heads] for at in range(3))
    weights = torch.softmax((queries * each**-0.5) @ keys.transpose(-1, -2), dim=-1)
    mixed = (weights @ values).transpose(1, 2).reshape(batch, length, width)
    return functional.linear(mixed, by["out_weight"], by["out_bias"]).transpose(0, 1), None


def _plain_gru(args: tuple[Any, ...], said: Mapping[str, Any]) -> bool:
    """Return whether it is a GRU over sequences of one length, not too long to write out."""
    if said or len(args) != 9 or not isinstance(args[2], list | tuple):
        return False  # packed sequences have their lengths in the second place
    given, batch_first, training, dropout = args[0], args[8], args[6], args[5]
    if given.dim() != 3 or (training and dropout):
        return False
    return int(given.shape[1 if batch_first else 0]) <= STEPS_UP_TO


def _gru(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return what torch.gru returns."""
    given, state, parameters, has_biases, num_layers, _, _, bidirectional, batch_first = args
    rows = given if batch_first else given.transpose(0, 1)
    each = 4 if has_biases else 2
    directions = 2 if bidirectional else 1
    last: list[Tensor] = []
    for layer in range(num_layers):
        sides: list[Tensor] = []
        for side in range(directions):
            place = layer * directions + side
            own = list(parameters[place * each : (place + 1) * each])
            read, end = _read(rows, state[place], own, backwards=side == 1)
            sides.append(read)
            last.append(end)
        rows = sides[0] if directions == 1 else torch.cat(sides, dim=-1)
    return rows if batch_first else rows.transpose(0, 1), torch.stack(last)


def _read(
    rows: Tensor, state: Tensor, own: Sequence[Tensor], *, backwards: bool
) -> tuple[Tensor, Tensor]:
    """Return a layer's states (batch x length x width) and the last one.

    All rows meet their weights at once; a step has one product, and one sigmoid for both gates.
    """
    own_bias: Sequence[Tensor | None] = own[2:] or (None, None)
    width = own[1].shape[1]
    seen = functional.linear(rows, own[0], own_bias[0])
    found: list[Tensor] = []
    order = range(int(rows.shape[1]))
    for step in reversed(order) if backwards else order:
        told = functional.linear(state, own[1], own_bias[1])
        now = seen[:, step]
        gates = torch.sigmoid(now[:, : 2 * width] + told[:, : 2 * width])
        reset, keep = gates[:, :width], gates[:, width:]
        fresh = torch.tanh(now[:, 2 * width :] + reset * told[:, 2 * width :])
        state = fresh + keep * (state - fresh)
        found.append(state)
    return torch.stack(found[::-1] if backwards else found, dim=1), state


def _nearest_by_index(args: tuple[Any, ...], said: Mapping[str, Any]) -> Tensor:
    """Return an image resized by picking rows and columns, as torch picks them.

    The converter writes RESIZE_NEAREST_NEIGHBOR, which picks others where the factor is no whole
    number: an image of 8 x 8 made 28 x 28 lost 3 points of a digit classifier's accuracy.
    """
    image: Tensor = args[0]
    size = args[1] if len(args) > 1 else said["size"]
    sizes = size if isinstance(size, tuple | list) else [size] * (image.ndim - 2)
    for axis, made in enumerate(sizes, start=2):
        there = image.shape[axis]
        if made % there:
            image = image.index_select(axis, _nearest(there, made))
        elif made != there:
            image = image.repeat_interleave(made // there, axis)
    return image


def _nearest(there: int, made: int) -> Tensor:
    """Return which of `there` pixels each of `made` is, in single precision as torch does."""
    places = np.floor(np.arange(made, dtype=np.float32) * np.float32(there / made))
    return torch.from_numpy(places.astype(np.int64).clip(max=there - 1))


def _by_whole_sizes(args: Sequence[Any], said: Mapping[str, Any]) -> bool:
    """Return whether an image is resized to given sizes by its nearest pixels, and not evenly."""
    size = args[1] if len(args) > 1 else said.get("size")
    mode = args[3] if len(args) > 3 else said.get("mode", "nearest")
    if size is None or mode != "nearest":
        return False
    sizes = size if isinstance(size, tuple | list) else [size] * (args[0].ndim - 2)
    return any(made % there for made, there in zip(sizes, args[0].shape[2:], strict=True))


def same(model: nn.Module, example: Sequence[Tensor], *, tolerance: float = 1e-4) -> bool:
    """Return whether a model answers its example alike with its layers lowered."""
    with torch.no_grad():
        plain = model(*example)
        with Lowered():
            found = model(*example)
    pairs = zip(_several(plain), _several(found), strict=True)
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(a.abs().max())))
        for a, b in pairs
    )


def _several(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, tuple | list) else (found,)
