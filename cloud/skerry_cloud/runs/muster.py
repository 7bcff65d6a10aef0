"""Which devices a run has: those that match, are ready, and are enough, or the reason why not."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from skerry_protos import steady
from skerry_protos.messages import DeviceId

from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.world import BrokenRunError, Roster, Waiting, naming
from skerry_cloud.selectors import parse
from skerry_cloud.store.devices import Device

LOOK_AGAIN_S = 1.0
"""How often a wait for devices looks for what it was not told of."""


class Muster:
    """The devices of one run."""

    def __init__(self, options: RunOptions, roster: Roster) -> None:
        self._options = options
        self._selector = parse(options.selector)
        self._coded = options.coded
        self._roster = roster
        self._by_node: dict[int, Device] = {}
        self.partitions: dict[str, int] = {}
        self._asked_at = 0.0
        self._asked = 0

    async def gather(self, waiting: Callable[[Waiting | None], None]) -> list[Device]:
        """Return the ready devices once there are enough; tell `waiting` why until then.

        Raise BrokenRunError at the deadline. Flower's strategies ask again and again when they
        want more devices than there are: the same deadline holds for all of that asking.
        """
        limit = self._options.wait_deadline_s
        now = time.monotonic()
        self._asked_at = self._asked_at if self._asked else now
        self._asked += 1
        devices = await self._enough(waiting, limit)
        again = self._asked > 2
        if again and now - self._asked_at > limit:
            raise BrokenRunError(
                f"the app went on asking for devices for {limit:g} s: {len(devices)} are ready, "
                "and its strategy seems to want more (min_available_nodes, min_train_nodes)"
            )
        left = steady.unix_s() + limit - (now - self._asked_at)
        why = f"the app asks for devices again and again, as if {len(devices)} were too few"
        waiting(Waiting(what="devices", why=why, until=left) if again else None)
        await self._number(devices)
        self._by_node |= {device.node: device for device in devices}
        return devices

    async def _enough(
        self, waiting: Callable[[Waiting | None], None], limit: float
    ) -> list[Device]:
        until = steady.unix_s() + limit
        while True:
            devices = await self._roster.available(self._selector, self._options.capabilities)
            if self._coded:  # what a device can code its first heartbeat says, moments after Hello
                devices = [device for device in devices if device.heartbeat]
            if len(devices) >= self._options.min_devices:
                return devices
            why = await self._too_few(devices)
            if steady.unix_s() >= until:
                raise BrokenRunError(f"waited {limit:g} s for devices: {why}")
            waiting(Waiting(what="devices", why=why, until=until))
            await self._roster.wait_change(max(0.0, min(LOOK_AGAIN_S, until - steady.unix_s())))

    async def _too_few(self, ready: list[Device]) -> str:
        """Return why there are too few devices, naming those that could be there."""
        here = {device.id for device in ready}
        needed = frozenset(self._options.capabilities)
        missing = []
        for device in await self._roster.devices(self._selector):
            if device.id in here or device.revoked_at is not None:
                continue
            lacks = sorted(needed - device.capabilities)
            state = f"lacks {lacks[0]}" if device.ready and lacks else f"is {device.state}"
            missing.append(f"{device.id} {state}")
        of = f" that match {self._options.selector!r}" if self._options.selector else ""
        text = f"{len(ready)} of {self._options.min_devices} devices{of} are ready"
        return f"{text}: {naming(missing)}" if missing else text

    async def find(self, nodes: Iterable[int]) -> Mapping[int, Device]:
        """Return this run's devices by node; whoever asks has had enough of waiting for more."""
        self._asked = 0
        if any(node not in self._by_node for node in nodes):
            matching = await self._roster.devices(self._selector)
            more = [device for device in matching if device.revoked_at is None]
            await self._number(more)
            self._by_node |= {device.node: device for device in more}
        return self._by_node

    def nodes_where(self, claim: Callable[[Device], bool]) -> list[int]:
        """Return the nodes of this run's devices of which a claim holds."""
        return [node for node, device in self._by_node.items() if claim(device)]

    def device_of(self, node: int) -> str:
        """Return a node's device, or nothing."""
        device = self._by_node.get(node)
        return "" if device is None else device.id

    async def restore(self, partitions: Mapping[str, int]) -> None:
        """Know the places that were given before, and the devices."""
        self.partitions = dict(partitions)
        devices = await self._roster.devices(self._selector)
        self._by_node = {one.node: one for one in devices if one.revoked_at is None}

    def lose(self, device: DeviceId) -> None:
        """Forget a device that was drained or revoked."""
        self._by_node = {node: one for node, one in self._by_node.items() if one.id != device}

    def node_config(self, device: Device) -> dict[str, Any]:
        """Return what a device is told of its place: its labels', else its order in this run."""
        config: dict[str, Any] = {
            "partition-id": self.partitions.get(device.id, 0),
            "num-partitions": max(1, len(self.partitions)),
        }
        for key in config:
            if device.labels.get(key, "").isdecimal():
                config[key] = int(device.labels[key])
        return config

    async def _number(self, devices: list[Device]) -> None:
        """Give each device its partition, the longest enrolled first."""
        if not self.partitions:
            matching = await self._roster.devices(self._selector)
            for device in sorted(matching, key=lambda one: (one.enrolled_at, one.id)):
                if device.revoked_at is None:
                    self.partitions[device.id] = len(self.partitions)
        for device in devices:
            self.partitions.setdefault(device.id, len(self.partitions))
