"""The first frames of a connection: Hello, and Welcome or Refusal.

The device says Hello on every new wire; the cloud answers with the session's number, or why not.
"""

import re
import secrets
import time
from dataclasses import dataclass

from skerry_protos import steady
from skerry_protos.errors import PeerError, RefusalCode, RefusedError
from skerry_protos.messages import DEVICE_ID_PATTERN, DeviceId
from skerry_protos.session.frames import TEXT_LIMIT, pack
from skerry_protos.v1 import fleet_pb2 as pb
from skerry_protos.versions import PROTOCOL, ProtocolVersion, negotiate

HELLO_S = 15.0
"""How long either side waits for the other's part of the handshake."""
AGAIN_S = 2.0
"""When a device says its Hello again, on a wire that may have lost it or the answer."""
SMALLEST_PACKET = 1024
"""A wire that takes no packet of this size cannot carry a session."""

_DEVICE = re.compile(DEVICE_ID_PATTERN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a device said in its Hello, checked."""

    device: DeviceId
    agent_version: str
    protocol: ProtocolVersion  # the version both will speak
    resume: int
    nonce: int
    max_packet: int
    hears_kept: bool = False


def hello(
    device: DeviceId,
    agent_version: str,
    *,
    resume: int,
    max_packet: int,
    hears_kept: bool = False,
    protocol: ProtocolVersion = PROTOCOL,
) -> pb.Frame:
    """Return a device's first frame; its nonce is new for each call."""
    return pb.Frame(
        hello=pb.Hello(
            protocol=pb.Version(major=protocol.major, minor=protocol.minor),
            device=device,
            agent_version=agent_version,
            resume=resume,
            nonce=secrets.randbits(64),
            max_packet=max_packet,
            hears_kept=hears_kept,
        )
    )


def read_hello(
    frame: pb.Frame, identity: str | None, *, protocol: ProtocolVersion = PROTOCOL
) -> Greeting:
    """Return what a device said, or raise RefusedError for the answer.

    `identity` is the name the transport has proved (the certificate's CN), None on a plaintext
    loopback wire.
    """
    if frame.WhichOneof("kind") != "hello":
        raise RefusedError(RefusalCode.MALFORMED, "the first frame is not a Hello")
    said = frame.hello
    if not _DEVICE.fullmatch(said.device):
        raise RefusedError(RefusalCode.MALFORMED, "the device id is not 1 to 64 of A-Z a-z 0-9 _ -")
    if identity is not None and said.device != identity:
        raise RefusedError(
            RefusalCode.IDENTITY,
            f"the Hello is of device {said.device}, but the certificate is of {identity[:64]!r}",
        )
    if said.max_packet < SMALLEST_PACKET:
        raise RefusedError(
            RefusalCode.MALFORMED,
            f"the device takes packets of {said.max_packet} bytes, at least {SMALLEST_PACKET} are "
            "needed",
        )
    return Greeting(
        device=DeviceId(said.device),
        agent_version=said.agent_version[:64],
        protocol=negotiate(protocol, ProtocolVersion(said.protocol.major, said.protocol.minor)),
        resume=said.resume,
        nonce=said.nonce,
        max_packet=said.max_packet,
        hears_kept=said.hears_kept,
    )


def welcome(
    greeting: Greeting, session: int, *, resumed: bool, max_packet: int, heartbeat_s: float
) -> pb.Frame:
    """Return the frame that admits a device."""
    return pb.Frame(
        welcome=pb.Welcome(
            protocol=pb.Version(major=greeting.protocol.major, minor=greeting.protocol.minor),
            session=session,
            nonce=greeting.nonce,
            resumed=resumed,
            max_packet=max_packet,
            heartbeat_s=heartbeat_s,
            unix_time_s=time.time(),
            deadlines_s=steady.unix_s(),
        )
    )


def refusal(error: RefusedError, *, nonce: int = 0, session: int = 0) -> bytes:
    """Return the packet that refuses a Hello (by its nonce) or ends a session (by its number)."""
    return pack(
        pb.Frame(
            session=session,
            refusal=pb.Refusal(
                nonce=nonce,
                code=error.code,
                message=error.message[:TEXT_LIMIT],
                retry_after_s=error.retry_after_s,
            ),
        )
    )


def refused(frame: pb.Frame) -> RefusedError:
    """Return the error that a Refusal frame carries."""
    said = frame.refusal
    wait = said.retry_after_s if 0 <= said.retry_after_s < 86400 else 60.0
    return RefusedError(said.code[:64], said.message[:TEXT_LIMIT], retry_after_s=wait)


def read_answer(frame: pb.Frame, nonce: int) -> pb.Welcome | None:
    """Return the Welcome to the Hello with `nonce`; None for a frame that is not its answer.

    Raise RefusedError when the cloud refused it, PeerError when the answer makes no sense.
    """
    kind = frame.WhichOneof("kind")
    if kind == "refusal" and frame.session == 0 and frame.refusal.nonce in {0, nonce}:
        raise refused(frame)
    if kind != "welcome" or frame.welcome.nonce != nonce:
        return None
    said = frame.welcome
    if said.session == 0 or said.max_packet < SMALLEST_PACKET:
        raise PeerError("the coordinator's Welcome names no session or no usable packet size")
    if said.protocol.major != PROTOCOL.major:
        raise RefusedError(
            RefusalCode.VERSION,
            f"the coordinator answers with protocol {said.protocol.major}.{said.protocol.minor}, "
            f"this agent speaks {PROTOCOL}: upgrade the agent",
        )
    return said
