"""Several transports as one fleet: what is for a device goes where the device is connected."""

import asyncio
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from skerry_protos.errors import LinkError
from skerry_protos.messages import BlobRef, DeviceId, Parcel
from skerry_protos.seams import Stream

from skerry_cloud.fleets import Fleet


class JoinedFleet:
    """A Fleet of fleets; of two that a device is connected by, the earlier one carries."""

    def __init__(self, fleets: Sequence[Fleet]) -> None:
        """Join fleets that others open and close."""
        self._fleets = tuple(fleets)
        self._last: dict[DeviceId, Fleet] = {}

    def _of(self, device: DeviceId) -> Fleet:
        """Return the fleet where the device is, or was last: its session may live on there."""
        for fleet in self._fleets:
            if device in fleet.devices():
                self._last[device] = fleet
                return fleet
        last = self._last.get(device)
        if last is None:
            raise LinkError(f"device {device} is not connected")
        return last

    def devices(self) -> Set[DeviceId]:
        return frozenset[DeviceId]().union(*(fleet.devices() for fleet in self._fleets))

    async def deliver(self, device: DeviceId, parcel: Parcel) -> None:
        await self._of(device).deliver(device, parcel)

    async def fetch(self, device: DeviceId, ref: BlobRef, *, deadline_s: float) -> Path:
        return await self._of(device).fetch(device, ref, deadline_s=deadline_s)

    def cast(self, ref: BlobRef, devices: Iterable[DeviceId]) -> None:
        wanted = frozenset(devices)
        for fleet in self._fleets:
            if here := wanted & fleet.devices():
                fleet.cast(ref, here)

    async def open_stream(
        self, device: DeviceId, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        return await self._of(device).open_stream(
            device, kind, deadline_s=deadline_s, run=run, trace=trace
        )

    async def dismiss(self, device: DeviceId, code: str, message: str) -> None:
        self._last.pop(device, None)
        async with asyncio.TaskGroup() as group:
            for fleet in self._fleets:
                group.create_task(fleet.dismiss(device, code, message))
