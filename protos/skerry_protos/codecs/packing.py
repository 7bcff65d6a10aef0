"""Bytes squeezed by zstd where that pays, and opened again within a limit known beforehand.

A part is compressed only when a probe of it gains; random-looking bytes (mantissas) cost no time.
Whoever opens a part knows how many bytes must come out, from shapes that were checked: a frame that
says otherwise is refused before memory is taken for it.
"""

from typing import Any

from skerry_protos.codecs import CodedError

try:
    import zstandard
except ImportError:  # a device may do without: it sends its parts as they are
    zstandard = None  # type: ignore[assignment]

Bytes = bytes | bytearray | memoryview

LEVEL = 1
SMALLEST = 64
"""Parts below this many bytes stay as they are: a frame's own bytes would eat the gain."""
GAIN = 0.05
"""What compression must save, of the part."""
PROBE = 64 * 1024
PROBES = 4
WINDOW = 8 * 1024**2
"""Largest window that a frame may want, bytes."""


def squeeze(data: Bytes) -> tuple[Bytes, bool]:
    """Return the bytes to send and whether they are a zstd frame."""
    view = memoryview(data).cast("B")
    if zstandard is None or view.nbytes < SMALLEST or not _promising(view):
        return view, False
    made = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(view)
    return (made, True) if len(made) <= view.nbytes * (1 - GAIN) else (view, False)


def _promising(view: memoryview) -> bool:
    """Return whether samples from all over a large part gain; a small one is simply tried."""
    if view.nbytes <= PROBES * PROBE:
        return True
    step = (view.nbytes - PROBE) // (PROBES - 1)
    sample = b"".join(view[at * step : at * step + PROBE] for at in range(PROBES))
    made = zstandard.ZstdCompressor(level=LEVEL).compress(sample)
    return len(made) <= len(sample) * (1 - GAIN)


def restore(data: Bytes, *, squeezed: bool, nbytes: int) -> memoryview:
    """Return the `nbytes` bytes that were sent as `data`, or raise CodedError.

    Nothing is allocated before the frame's own header agrees with `nbytes`.
    """
    view = memoryview(data).cast("B")
    if not squeezed:
        if view.nbytes != nbytes:
            raise CodedError(f"a part has {view.nbytes} bytes; expected {nbytes}")
        return view
    if zstandard is None:
        raise CodedError("a part is a zstd frame, and zstandard is not installed here")
    try:
        frame: Any = zstandard.get_frame_parameters(view)
        if frame.content_size != nbytes or not nbytes:
            raise CodedError(f"a part says it opens to {frame.content_size} bytes, not {nbytes}")
        if frame.window_size > max(WINDOW, nbytes) or frame.dict_id:
            raise CodedError(f"a part wants a window of {frame.window_size} bytes")
        made = zstandard.ZstdDecompressor().decompress(
            view, max_output_size=nbytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CodedError(f"a part is no zstd frame: {error}") from error
    if len(made) != nbytes:
        raise CodedError(f"a part opened to {len(made)} bytes; expected {nbytes}")
    return memoryview(made)
