"""The session between a device and the cloud: what is sent arrives once, over any wire.

Start in `session.py`. `handshake` makes the connection's first frames, `frames` packs and checks
all others; `parcels`, `transfers` (blobs) and `streams` are the three things a session carries.
"""

from skerry_protos.session.frames import chunk_packet, pack, unpack, unpack_all
from skerry_protos.session.limits import Inflow, Limits
from skerry_protos.session.session import Session, Side

__all__ = ["Inflow", "Limits", "Session", "Side", "chunk_packet", "pack", "unpack", "unpack_all"]
