"""The MQTT topics both sides use, and who may do what with them.

A broker gives every client the name in its certificate (the CN) as its user name. `allowed` is the
whole of the topic rights: brokers we run enforce it, and docker/mosquitto/acl says the same.
"""

import re
from enum import StrEnum
from typing import Final

from skerry_protos.messages import DEVICE_ID_PATTERN, DeviceId, Digest

ROOT: Final = "skerry/v1"
COORDINATOR: Final = "skerry-coordinator"
"""The CN of the coordinator's certificate; no device may have it as its id."""

STATUS: Final = f"{ROOT}/coordinator"
"""Retained: the coordinator's epoch in decimal; empty (its last will) while it is away."""

KEPT_SIZE: Final = 64 * 1024**2
"""Largest blob whose chunks a broker is asked to keep for devices that begin to listen late."""

UP_ALL: Final = f"{ROOT}/up/+"
CAST_ALL: Final = f"{ROOT}/cast/+"

_UP_PREFIX: Final = f"{ROOT}/up/"
_DEVICE: Final = re.compile(DEVICE_ID_PATTERN)
_CAST: Final = re.compile(rf"{ROOT}/cast/[0-9a-f]{{64}}(/[0-9]{{1,12}})?")


class Action(StrEnum):
    """What a client asks a broker to do with a topic."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


def up(device: DeviceId | str) -> str:
    """Return the topic on which a device speaks to the cloud."""
    return f"{_UP_PREFIX}{device}"


def down(device: DeviceId | str) -> str:
    """Return the topic on which the cloud speaks to a device."""
    return f"{ROOT}/down/{device}"


def cast(digest: Digest) -> str:
    """Return the topic on which a blob's chunks are broadcast."""
    return f"{ROOT}/cast/{digest}"


def kept(digest: Digest, offset: int) -> str:
    """Return the topic on which a broker keeps (retains) one chunk of a broadcast blob."""
    return f"{cast(digest)}/{offset}"


def sender(topic: str) -> DeviceId | None:
    """Return the device that speaks on this topic, or None when it is no device's."""
    name = topic.removeprefix(_UP_PREFIX)
    if name == topic or not _DEVICE.fullmatch(name):
        return None
    return DeviceId(name)


def allowed(user: str, action: Action, topic: str) -> bool:
    """Return whether `user` (a certificate's CN) may publish to or subscribe to `topic`."""
    if user == COORDINATOR:
        return topic.startswith(f"{ROOT}/")
    if not _DEVICE.fullmatch(user):
        return False
    if action is Action.PUBLISH:
        return topic == up(user)
    return topic in (down(user), STATUS, f"{ROOT}/cast/#", CAST_ALL) or bool(_CAST.fullmatch(topic))
