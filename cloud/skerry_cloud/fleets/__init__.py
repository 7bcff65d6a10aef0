"""The cloud's side of the sea: one `Fleet` per transport, and `Fleets` that joins them.

Each implementation runs one `skerry_protos.session.Session` per connected device. A fleet knows who
is connected; who is enrolled, labelled or revoked is the registry's business, asked by `Gate`.
"""

from collections.abc import Iterable, Set
from pathlib import Path
from typing import Protocol

from skerry_protos.errors import SkerryError
from skerry_protos.messages import BlobRef, DeviceId, Parcel
from skerry_protos.seams import Stream


class Gate(Protocol):
    """Whom a fleet admits and whom it tells (the coordinator's registry)."""

    async def admit(self, device: DeviceId, transport: str, agent_version: str) -> None:
        """Return if the device may have a session now; else raise RefusedError."""
        ...

    async def present(self, device: DeviceId, transport: str) -> None:
        """Note that the device's session is up (also after a resume)."""
        ...

    async def absent(self, device: DeviceId, transport: str, why: str) -> None:
        """Note that the device's wire was cut."""
        ...

    async def accept(self, device: DeviceId, parcel: Parcel) -> None:
        """Store a parcel's effect; as skerry_protos.seams.Receiver.accept.

        The parcel's blobs are not here yet: take what is wanted with Fleet.fetch before returning.
        """
        ...

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        """Note what the session refused by itself: a parcel outside its limits, which names `run`.

        With run "" the device broke the protocol, and is cut.
        """
        ...

    async def serve(self, device: DeviceId, stream: Stream) -> None:
        """Serve a stream that a device opened."""
        ...


class Fleet(Protocol):
    """The devices connected by one transport (or by all); an async context manager."""

    def devices(self) -> Set[DeviceId]:
        """Return who is connected now; it may go on showing that as they come and go.

        Asking whether it holds a device costs the same for one device and for thousands.
        """
        ...

    async def deliver(self, device: DeviceId, parcel: Parcel) -> None:
        """Send until the device has stored it, across cuts of the wire while the session lives.

        Raise RejectedError, DeadlineError, or LinkError when the session is gone. The caller keeps
        the parcel and sends it again when the device is present again; the device knows it by id.
        """
        ...

    async def fetch(self, device: DeviceId, ref: BlobRef, *, deadline_s: float) -> Path:
        """Return the file of a blob the device offers, moved and verified."""
        ...

    def cast(self, ref: BlobRef, devices: Iterable[DeviceId]) -> None:
        """Say that these devices are about to ask for this blob.

        A transport with broadcast (MQTT) then publishes each chunk once for all, paced by the
        fastest, and repairs the rest alone; others do nothing.
        """
        ...

    async def open_stream(
        self, device: DeviceId, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        """Open a stream to the device."""
        ...

    async def dismiss(self, device: DeviceId, code: str, message: str) -> None:
        """Cut the device's live connection now with this refusal (revocation)."""
        ...
