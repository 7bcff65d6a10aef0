"""How much of everything one session holds, and what a fleet's sessions may ask for together."""

from dataclasses import dataclass

from skerry_protos.messages import BLOB_SIZE_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one session; what passes them is refused, never queued without end."""

    parcels_out: int = 32  # parcels on the wire that are not answered yet; more wait their turn
    parcels_in: int = 64  # parcels being accepted at once
    parcels_known: int = 4096  # answers kept to recognise a repeated parcel
    blob: int = BLOB_SIZE_LIMIT
    window: int = 16  # blob chunks asked for and not here yet, per blob, at most
    serving: int = 4096  # blob chunks the other side may be waiting for
    streams: int = 256  # streams the other side may have open
    stream_window: int = 4 * 1024**2  # bytes a stream's sender may be ahead of its reader
    streams_window: int = 64 * 1024**2  # the same for all streams together
    message: int = 64 * 1024**2  # largest message of a stream


class Inflow:
    """What the sessions that share it have asked for and not received yet: a fleet's fan-in.

    A broker's queue in front of the cloud is the scarce thing: mosquitto silently drops what passes
    1000 messages (RELIABILITY.md 0.1), so the sum over all devices is bounded, not each device.
    """

    def __init__(self, *, chunks: int = 512, size: int = 32 * 1024**2) -> None:
        self.chunks = chunks
        self.size = size
