"""Tensors as bytes: a fixed list of element types, C order, little-endian, bounded shapes.

A `Tensor` is a view of somebody's bytes (an array's memory, a file's mapping, a message), never a
copy. numpy enters only when a value is asked for: an idle agent does not pay for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Self

from skerry_protos.errors import PeerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NDIM_LIMIT = 32
"""Most axes of a tensor (numpy 1 takes 32)."""
NBYTES_LIMIT = 64 * 1024**3
"""Largest tensor, bytes; a reader sets a smaller limit of its own."""
STYPE_LIMIT = 64
"""Longest name of an app's own serialisation, characters."""


class DType(IntEnum):
    """The element types that cross the water; the numbers are on the wire and never reused."""

    BOOL = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    UINT32 = 6
    INT32 = 7
    UINT64 = 8
    INT64 = 9
    FLOAT16 = 10
    FLOAT32 = 11
    FLOAT64 = 12
    BFLOAT16 = 13  # numpy has none: `numpy()` gives the bits as uint16
    COMPLEX64 = 14
    COMPLEX128 = 15
    FLOAT8_E4M3FN = 16  # the bits as uint8
    FLOAT8_E5M2 = 17  # the bits as uint8

    @property
    def itemsize(self) -> int:
        """Return the bytes of one element."""
        return int(_NUMPY[self][2:])

    @property
    def numpy_code(self) -> str:
        """Return numpy's code of the elements, or of their bits where numpy has no such type."""
        return _NUMPY[self]

    @property
    def floating(self) -> bool:
        """Return whether elements may be NaN or infinite."""
        return self in _FLOATING


_NUMPY: dict[DType, str] = {
    DType.BOOL: "|b1",
    DType.UINT8: "|u1",
    DType.INT8: "|i1",
    DType.UINT16: "<u2",
    DType.INT16: "<i2",
    DType.UINT32: "<u4",
    DType.INT32: "<i4",
    DType.UINT64: "<u8",
    DType.INT64: "<i8",
    DType.FLOAT16: "<f2",
    DType.FLOAT32: "<f4",
    DType.FLOAT64: "<f8",
    DType.BFLOAT16: "<u2",
    DType.COMPLEX64: "<c8",
    DType.COMPLEX128: "<c16",
    DType.FLOAT8_E4M3FN: "|u1",
    DType.FLOAT8_E5M2: "|u1",
}
_BITS = frozenset({DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2})
_FLOATING = _BITS | {
    DType.FLOAT16,
    DType.FLOAT32,
    DType.FLOAT64,
    DType.COMPLEX64,
    DType.COMPLEX128,
}
_DTYPE = {code: dtype for dtype, code in _NUMPY.items() if dtype not in _BITS}


def nbytes_of(dtype: DType, shape: Sequence[int], limit: int = NBYTES_LIMIT) -> int:
    """Return the bytes of a tensor, or raise PeerError for a shape nobody should allocate.

    Axes of length 0 are left out of the check of the limit: (0, 2**62) is as unusable as 2**62.
    """
    if len(shape) > NDIM_LIMIT:
        raise PeerError(f"a tensor has {len(shape)} axes; expected at most {NDIM_LIMIT}")
    extent = dtype.itemsize
    for axis in shape:
        if axis < 0:
            raise PeerError(f"a tensor's axis is {axis}; expected 0 or more")
        extent *= max(axis, 1)
        if extent > limit:
            raise PeerError(f"a tensor of shape {_short(shape)} passes the limit of {limit} bytes")
    return 0 if 0 in shape else extent


def _short(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(axis) for axis in shape[:8]) + (", …)" if len(shape) > 8 else ")")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Elements in C order, little-endian, over `data`; or, with `stype`, an app's opaque bytes.

    An opaque tensor is UINT8 of one axis; `stype` names the serialisation, `stype_dtype` and
    `stype_shape` are what the app says is inside.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: memoryview
    stype: str = ""
    stype_dtype: str = ""
    stype_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        expected = nbytes_of(self.dtype, self.shape)
        if self.data.nbytes != expected:
            raise PeerError(
                f"a tensor of {self.dtype.name} {_short(self.shape)} has {self.data.nbytes} bytes; "
                f"expected {expected}"
            )

    @property
    def nbytes(self) -> int:
        """Return the bytes of the elements."""
        return self.data.nbytes

    @classmethod
    def of(cls, array: "NDArray[Any]") -> Self:
        """Return a view of an array's memory, copied only when it is not C order little-endian."""
        import numpy as np

        code = array.dtype.newbyteorder("<").str
        if code not in _DTYPE:
            raise TypeError(f"an array of {array.dtype} cannot be sent; there are {sorted(_DTYPE)}")
        plain = np.asarray(array, dtype=code, order="C")
        return cls(dtype=_DTYPE[code], shape=plain.shape, data=_memory(plain))

    @classmethod
    def of_bits(cls, dtype: DType, bits: "NDArray[Any]") -> Self:
        """Return a tensor of a type that numpy lacks, from its bits as unsigned integers."""
        import numpy as np

        plain = np.asarray(bits, order="C")
        if dtype not in _BITS or plain.dtype.newbyteorder("<").str != dtype.numpy_code:
            raise TypeError(f"bits of {plain.dtype} are not {dtype.name}'s {dtype.numpy_code}")
        return cls(dtype=dtype, shape=plain.shape, data=_memory(plain))

    @classmethod
    def opaque(
        cls, data: bytes | memoryview, stype: str, dtype: str, shape: tuple[int, ...]
    ) -> Self:
        """Return an app's own bytes, which nothing on the way looks into."""
        view = memoryview(data).cast("B")
        return cls(
            dtype=DType.UINT8,
            shape=(view.nbytes,),
            data=view,
            stype=stype,
            stype_dtype=dtype,
            stype_shape=shape,
        )

    def numpy(self) -> "NDArray[Any]":
        """Return an array over the same bytes; read-only when they are."""
        import numpy as np

        array = np.frombuffer(self.data, dtype=self.dtype.numpy_code).reshape(self.shape)
        if self.dtype is DType.BOOL and array.size and array.view(np.uint8).max() > 1:
            raise PeerError("a tensor of BOOL has an element that is neither 0 nor 1")
        return array

    def float32(self) -> "NDArray[np.float32]":
        """Return the elements as float32; a copy unless they are that already."""
        import numpy as np

        if self.dtype is DType.BFLOAT16:
            return (self.numpy().astype(np.uint32) << 16).view(np.float32)
        if self.dtype in _BITS:
            raise TypeError(f"{self.dtype.name} has no conversion here")
        return self.numpy().astype(np.float32, copy=False)

    def finite(self) -> bool:
        """Return whether no element is NaN or infinite; opaque bytes are."""
        if self.stype or not self.dtype.floating or not self.data.nbytes:
            return True
        array = self.numpy()
        match self.dtype:
            case DType.BFLOAT16:
                return not bool(((array & 0x7F80) == 0x7F80).any())
            case DType.FLOAT8_E5M2:
                return not bool(((array & 0x7C) == 0x7C).any())
            case DType.FLOAT8_E4M3FN:  # has no infinity, and one NaN of each sign
                return not bool(((array & 0x7F) == 0x7F).any())
        return _finite(array)


def _finite(array: "NDArray[Any]") -> bool:
    """Return whether all elements are finite, without an array of answers where a sum can tell."""
    import numpy as np

    # NaN and infinity survive a sum, and it is the cheapest pass over memory; a finite array whose
    # sum overflows is looked at again.
    with np.errstate(all="ignore"):
        total = array.sum(dtype=np.float32 if array.dtype.itemsize == 2 else None)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())


def _memory(array: "NDArray[Any]") -> memoryview:
    """Return the bytes of a C-order array (a cast of an empty memoryview is an error)."""
    import numpy as np

    return array.reshape(-1).view(np.uint8).data


def npy_bytes(tensor: Tensor) -> bytes:
    """Return the tensor as an .npy file (what Flower's Array holds): one copy of the data."""
    import numpy as np

    return _npy_head(np.dtype(tensor.dtype.numpy_code), tensor.shape) + tensor.data


def _npy_head(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    import io

    import numpy as np

    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )
    return head.getvalue()


def from_npy(data: bytes | memoryview) -> Tensor | None:
    """Return the tensor an .npy file holds, over its bytes; None when it has to stay opaque.

    Opaque stay: Fortran order, foreign byte order, and types outside `DType` (objects above all).
    """
    import io

    import numpy as np

    view = memoryview(data).cast("B")
    head = io.BytesIO(view[: 64 * 1024])
    try:
        version = np.lib.format.read_magic(head)
        if version != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    except Exception as error:  # numpy's reader lets through what tokenize and ast raise
        raise PeerError(f"not an .npy file: {error}") from error
    if (fortran and len(shape) > 1) or dtype.str not in _DTYPE:
        return None
    return Tensor(dtype=_DTYPE[dtype.str], shape=tuple(shape), data=view[head.tell() :])
