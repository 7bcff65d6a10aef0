"""Sessions whose wire breaks in the middle of a greeting."""

from pathlib import Path
from typing import Any

import pytest
from skerry_cloud.fleets.sessions import Sessions
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import LinkError
from skerry_protos.messages import DeviceId
from skerry_protos.session import pack, unpack_all
from skerry_protos.session.handshake import hello, read_answer

DEVICE = DeviceId("d1")


class Gate:
    """Lets everybody in."""

    async def admit(self, *_: Any) -> None: ...
    async def present(self, *_: Any) -> None: ...
    async def absent(self, *_: Any) -> None: ...


class Wire:
    """Keeps what is sent, or is cut before anything is."""

    reliable = exact = True
    chunk = max_packet = 65536

    def __init__(self, *, cut: bool) -> None:
        self._cut = cut
        self.sent: list[bytes] = []

    async def send(self, packet: bytes) -> None:
        if self._cut:
            raise LinkError("the wire was cut")
        self.sent.append(packet)


async def test_a_welcome_that_never_left_is_followed_by_one_that_counts(tmp_path: Path) -> None:
    """Else a device is welcomed to session 0, which it refuses, and comes again for ever."""
    gate: Any = Gate()
    sessions = Sessions(gate=gate, blobs=LocalBlobs(tmp_path), transport="test")

    async def greet(wire: Wire) -> int:
        said = hello(DEVICE, "0.1.0", resume=0, max_packet=65536)
        await sessions.greet(pack(said), wire, identity=None, close=lambda: None, max_packet=65536)
        (frame, _), *_ = unpack_all(wire.sent[0])
        answer = read_answer(frame, said.hello.nonce)
        assert answer is not None
        assert not answer.resumed
        return int(answer.session)

    with pytest.raises(LinkError):
        await greet(Wire(cut=True))
    begun = sessions.session(DEVICE)
    number = await greet(Wire(cut=False))
    assert number
    # What waits to be delivered waits in the session that was there before.
    assert sessions.session(DEVICE) is begun
    assert begun.number == number
    await sessions.close()
