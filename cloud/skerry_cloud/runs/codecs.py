"""Which codec each device is asked for: the run's wishes, and what its agent says it can.

An agent that announces no codec (an older one) is asked for none, and the run's journal says so.
"""

import json

from skerry_protos.codecs import FEEDBACK, LOSSLESS, NONE, Codec
from skerry_protos.messages import BESIDE, DeviceId

from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.selectors import Selector, parse
from skerry_cloud.store.devices import Device

PROFILE = "profile"
"""The label by which a selector of codecs names a device's profile."""


class Codecs:
    """A run's codecs by device."""

    def __init__(self, options: RunOptions) -> None:
        self._seed = options.seed
        self._general = Codec.parse(options.codec, source="codec")
        self._special: list[tuple[Selector, Codec]] = [
            (parse(selector), Codec.parse(said, source="codecs"))
            for selector, said in options.codecs.items()
        ]
        self.broadcast = options.broadcast_codec
        self.kept_by: set[DeviceId] = set()
        """Devices that keep something of a codec between rounds."""
        self._noted: set[DeviceId] = set()
        self._lacking: list[str] = []

    @property
    def used(self) -> bool:
        """Return whether any reply of this run may come coded."""
        wanted = [self._general, *(codec for _, codec in self._special)]
        return any(codec.name != NONE for codec in wanted) or self._losing

    @property
    def _losing(self) -> bool:
        return Codec(name=self.broadcast).lossy

    def decodes(self, device: Device) -> bool:
        """Return whether the device is sent its models coded."""
        return self.broadcast != NONE and LOSSLESS in announced(device)

    def beside(self, device: Device) -> bool:
        """Return whether the device takes a model and what goes with it in two parts."""
        return BESIDE in map(str, device.heartbeat.get("features", ()))

    def wanted(self, device: Device) -> Codec:
        """Return what the run wishes of the device: by the first selector that means it."""
        labels = {PROFILE: device.profile, **device.labels}
        found = next((codec for one, codec in self._special if one.matches(labels)), self._general)
        if found.name == NONE and self._losing and self.decodes(device):
            # It was sent other weights than the exact ones: only the difference adds to those.
            return Codec(name=LOSSLESS)
        return found

    def of(self, device: Device) -> Codec:
        """Return what the device is asked for: what is wanted, if its agent can."""
        wanted = self.wanted(device)
        return wanted if wanted.name in announced(device) else Codec()

    def task_json(self, device: Device, message_type: str) -> str:
        """Return what a task says of its codec; nothing for what is no training."""
        self._look(device)
        codec = self.of(device)
        if codec.name == NONE or message_type.partition(".")[0] != "train":
            return ""
        if codec.name in FEEDBACK:
            self.kept_by.add(device.id)
        return json.dumps({**codec.to_json(), "seed": self._seed})

    def _look(self, device: Device) -> None:
        """Note once for each device what its agent cannot do of what the run wants."""
        wanted = self.wanted(device)
        lacking = [] if wanted.name == NONE or self.of(device) == wanted else [wanted.name]
        if self.broadcast != NONE and not self.decodes(device):
            lacking.append(f"{self.broadcast} broadcasts")
        if lacking and device.id not in self._noted:
            self._noted.add(device.id)
            self._lacking.append(
                f"{device.id}: its agent announces no {' and no '.join(lacking)}; what it cannot "
                "code crosses as it is (upgrade the agent, or install skerry-edge[codecs] there)"
            )

    def lacking(self) -> list[str]:
        """Return, each once, what agents cannot do, in words."""
        found, self._lacking = self._lacking, []
        return found


def announced(device: Device) -> frozenset[str]:
    """Return the codecs that a device's agent says it can."""
    return frozenset(map(str, device.heartbeat.get("codecs", ())))
