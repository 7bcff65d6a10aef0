"""Questions to a device's local endpoint, in the Open Inference Protocol v2 (KServe) over HTTP.

Written as any program on a device would ask: JSON, one request for each image. `Traffic` goes on
asking beside something else, and counts what came of it.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from skerry_protos.errors import LinkError, PeerError, SkerryError

from skerry_devices.waiting import until

ENDPOINT = "inference.json"
"""Where an agent leaves its endpoint's address, in its home."""
ASK_S = 10.0
READY_S = 30.0
PAUSE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a device said of one image."""

    digit: int
    confidence: float
    version: str
    seconds: float
    parameters: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of many questions."""

    asked: int = 0
    right: int = 0
    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    confidences: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Return the share of the questions that was answered right."""
        return self.right / self.asked if self.asked else 0.0

    def latency_ms(self, quantile: float) -> float:
        """Return a quantile of the answers' times, in milliseconds."""
        return float(np.quantile(self.seconds, quantile)) * 1e3 if self.seconds else 0.0

    def count(self, answer: Answer, right: int) -> None:
        """Take in an answer to an image that shows the digit `right`."""
        self.asked += 1
        self.right += answer.digit == right
        self.seconds.append(answer.seconds)
        self.versions[answer.version] += 1
        self.confidences.append(answer.confidence)


class Endpoint:
    """One device's endpoint and the model asked there; a context manager."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self._http = httpx.Client(base_url=url, timeout=ASK_S, trust_env=False)
        self._about: dict[str, Any] = {}

    @classmethod
    def of(cls, home: Path, model: str) -> "Endpoint":
        """Return the endpoint of the agent in `home`, once it serves the model."""

        def ready() -> Endpoint | None:
            try:
                made = cls(str(json.loads((home / ENDPOINT).read_text())["url"]), model)
            except (OSError, ValueError, KeyError):
                return None  # the agent has not opened it yet
            if made.ready():
                return made
            made.close()
            return None

        return until(
            ready,
            timeout_s=READY_S,
            what=f"the endpoint of {home.name} serving {model}",
            hint="skerry models show says which devices have it",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def ready(self) -> bool:
        """Return whether it serves the model now."""
        try:
            return self._http.get(f"/v2/models/{self.model}/ready").is_success
        except httpx.HTTPError:
            return False

    def request(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """Return the request for one image (channels x rows x columns, whole numbers)."""
        if not self._about:
            self._about = self._get(f"/v2/models/{self.model}")
        one = self._about["inputs"][0]
        return {
            "inputs": [
                {
                    "name": one["name"],
                    "datatype": one["datatype"],
                    "shape": [1, *image.shape],
                    "data": image.ravel().tolist(),
                }
            ]
        }

    def ask(self, image: NDArray[np.uint8]) -> Answer:
        """Return what the device says of an image; raise LinkError or PeerError."""
        body = self.request(image)
        began = time.perf_counter()
        said = self._get(f"/v2/models/{self.model}/infer", body)
        seconds = time.perf_counter() - began
        try:
            outputs = {one["name"]: one["data"] for one in said["outputs"]}
            return Answer(
                digit=int(outputs["class"][0]),
                confidence=float(max(outputs["probabilities"])),
                version=str(said["model_version"]),
                seconds=seconds,
                parameters=said.get("parameters", {}),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PeerError(f"{self.url} gave no answer with classes: {error}") from error

    def _get(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._http.get(path) if body is None else self._http.post(path, json=body)
            if answer.is_error:
                raise PeerError(f"{self.url}{path} answered {answer.status_code}: {answer.text}")
            return dict(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            raise LinkError(
                f"{self.url} did not answer: {error or type(error).__name__}"
            ) from error


def ask_all(endpoint: Endpoint, images: NDArray[np.uint8], digits: NDArray[Any]) -> Tally:
    """Ask for every image (examples x channels x rows x columns), one after the other."""
    tally = Tally()
    for image, digit in zip(images, digits, strict=True):
        tally.count(endpoint.ask(image), int(digit))
    return tally


class Traffic:
    """Asks several devices in turn, one image after the other, until the block ends.

    A question that is not answered is counted with its reason, never raised.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], images: NDArray[np.uint8], digits: NDArray[Any]
    ) -> None:
        self.tally = Tally()
        self._endpoints, self._images, self._digits = endpoints, images, digits
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(2 * ASK_S)

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(PAUSE_S):
            endpoint = self._endpoints[number % len(self._endpoints)]
            at = number % len(self._images)
            number += 1
            try:
                self.tally.count(endpoint.ask(self._images[at]), int(self._digits[at]))
            except SkerryError as error:
                self.tally.asked += 1
                self.tally.failures.append(error.message)
