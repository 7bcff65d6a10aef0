"""The table [inference] of agent.toml and of a profile. The agent reads it: no numpy here."""

import ipaddress
from dataclasses import dataclass

RUNTIMES = ("auto", "onnx", "litert")


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceTable:
    """How the device answers predictions."""

    enabled: bool = True
    """Serve the live model, once there is one and a runtime is installed."""
    host: str = "127.0.0.1"
    """Where the HTTP endpoint listens; any other than loopback needs a token."""
    port: int = 8480
    token: str = ""
    """What requests must carry as `Authorization: Bearer`; empty: none, on loopback only."""
    runtime: str = "auto"
    """"onnx" or "litert"; "auto": the best measured here of those installed."""
    threads: int = 1
    """Threads of one call of the model; 0: one per core."""
    parallel: int = 0
    """Calls of the model at once, where its runtime allows it; 0: one more than cores / threads,
    where those are 2 or more, and 4 at most."""
    max_batch: int = 8
    """Requests answered by one call of the runtime, where the model's batch size is free."""
    batch_wait_ms: float = 0.0
    """How long a request waits for others; 0: only those that are there already are taken."""
    queue: int = 256
    """Requests that may wait; one more is told to come back."""
    request_mb: int = 16
    """Largest request."""
    timeout_s: float = 10.0
    """How long a request may wait for its answer."""
    mqtt: str = ""
    """A broker on whose request topic to answer too: mqtt://host:port; empty: none."""
    cloud: bool = True
    """Pass inputs the model is unsure of to the cloud's bigger model, when it is in reach."""
    cloud_wait_ms: float = 500.0
    """How long the cloud may take before the local answer is given."""

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, not {self.runtime!r}")
        for name in ("max_batch", "queue", "request_mb", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("threads", "parallel", "batch_wait_ms", "cloud_wait_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more")
        if not 0 <= self.port < 65536:
            raise ValueError("port must be 0 (any) to 65535")
        if not self.token and not _loopback(self.host):
            raise ValueError(f"host {self.host!r} is not loopback: set a token, or 127.0.0.1")
        if self.mqtt and not self.mqtt.startswith(("mqtt://", "mqtts://")):
            raise ValueError(f"mqtt must be mqtt://host:port or mqtts://…, not {self.mqtt!r}")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
