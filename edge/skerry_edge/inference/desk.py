"""The desk: which models are served now, and every request on its way through one of them.

A model is swapped while requests run: those that came before finish with the one they came for,
which is closed after the last of them. HTTP (server.py) and MQTT (topic.py) hand requests in here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.drift import confidence
from skerry_protos.errors import SkerryError

from skerry_edge.energy.budget import Throttle
from skerry_edge.inference import protocol
from skerry_edge.inference.batching import Batcher
from skerry_edge.inference.measures import Measures
from skerry_edge.inference.predictor import Predictor
from skerry_edge.inference.protocol import Request
from skerry_edge.inference.settings import InferenceTable

log = logging.getLogger(__name__)

Outputs = dict[str, NDArray[Any]]
Cloud = Callable[[str, Mapping[str, NDArray[Any]], str], Awaitable[Outputs]]
"""Asks the cloud's bigger model: model name, raw inputs and traceparent in, its outputs back."""

DRAIN_S = 60.0
SCARCE_WAIT_S = 0.05
"""How long requests gather when energy is scarce: larger batches cost less each."""


class NoModelError(SkerryError):
    """No such model is served here."""

    code = "not-found"
    exit_code = 3


class SparingError(SkerryError):
    """The device's energy for today is used up."""

    code = "energy"
    exit_code = 8


@dataclass(slots=True)
class Served:
    """A model that is served."""

    predictor: Predictor
    batcher: Batcher[Request, Outputs]
    measures: Measures
    stack: AsyncExitStack

    @property
    def name(self) -> str:
        return self.predictor.name

    def metadata(self) -> dict[str, Any]:
        """Return what the protocol calls the model's metadata."""
        predictor = self.predictor
        return {
            "name": predictor.name,
            "versions": [predictor.version],
            "platform": predictor.platform,
            "inputs": [protocol.tensor_metadata(one) for one in predictor.inputs],
            "outputs": [protocol.tensor_metadata(one) for one in predictor.outputs],
        }


class Desk:
    """Everything that is served by this process; an async context manager."""

    def __init__(self, settings: InferenceTable, *, cloud: Cloud | None = None) -> None:
        self._settings, self._cloud = settings, cloud
        self._parallel, self._executor = 1, _threads(1)
        self._served: dict[str, Served] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._throttle, self._why = Throttle.NONE, ""

    async def __aenter__(self) -> "Desk":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what waits, then close every model."""
        for name in list(self._served):
            self.withdraw(name)
        if self._closing:
            await asyncio.wait(self._closing, timeout=DRAIN_S)
        await asyncio.to_thread(self._executor.shutdown)

    @property
    def ready(self) -> bool:
        """Whether a model is served."""
        return bool(self._served)

    @property
    def served(self) -> list[Served]:
        """What is served now."""
        return list(self._served.values())

    async def serve(self, predictor: Predictor, *, parallel: int = 1) -> None:
        """Serve a loaded model, in place of the one of the same name.

        All models together have `parallel` calls at once, from now on; a model whose runtime takes
        one at a time has one.
        """
        if parallel != self._parallel:
            # The old threads end with the last batcher that has them.
            self._parallel, self._executor = parallel, _threads(parallel)
        executor = self._executor
        stack = AsyncExitStack()
        stack.callback(executor.submit, predictor.close)
        measures = Measures(predictor)

        def work(requests: Sequence[Request]) -> Sequence[Outputs]:
            made = predictor.predict([one.inputs for one in requests])
            measures.batch(requests, made)
            return made

        batcher = Batcher[Request, Outputs](
            work,
            max_rows=self._settings.max_batch if predictor.batches else 1,
            wait_s=self._wait_s,
            queue=self._settings.queue,
            executor=executor,
            at_once=parallel if predictor.parallel else 1,
        )
        await stack.enter_async_context(batcher)
        old = self._served.get(predictor.name)
        self._served[predictor.name] = Served(predictor, batcher, measures, stack)
        if old is not None:
            self._close(old)

    def withdraw(self, name: str) -> None:
        """Serve a model no more."""
        old = self._served.pop(name, None)
        if old is not None:
            self._close(old)

    def _close(self, old: Served) -> None:
        old.measures.close()
        task = asyncio.create_task(old.stack.aclose(), name=f"drain-{old.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def throttle(self, step: Throttle, why: str) -> None:
        """Be as sparing as the day's energy asks for."""
        self._throttle, self._why = step, why
        for served in self._served.values():
            served.batcher.wait_s = self._wait_s

    @property
    def _wait_s(self) -> float:
        usual = self._settings.batch_wait_ms / 1e3
        return max(usual, SCARCE_WAIT_S) if self._throttle >= Throttle.SCARCE else usual

    def find(self, name: str, version: str | None = None) -> Served:
        """Return what serves this model; raise NoModelError naming what there is."""
        served = self._served.get(name)
        if served is None:
            there = f"there are {sorted(self._served)}" if self._served else "none is served yet"
            raise NoModelError(f"no model {name[:100]!r} is served here", hint=there)
        if version is not None and version != served.predictor.version:
            raise NoModelError(
                f"version {version[:40]!r} of {name!r} is not served here",
                hint=f"version {served.predictor.version} is",
            )
        return served

    async def infer(
        self,
        name: str,
        version: str | None,
        body: bytes,
        json_bytes: int | None,
        *,
        traceparent: str = "",
    ) -> tuple[bytes, int | None]:
        """Answer a request of the Open Inference Protocol: its answer's body and JSON length.

        `traceparent` is what the request said of its trace (W3C), unchecked.
        """
        served = self.find(name, version)
        began = time.perf_counter()
        try:
            request = protocol.parse(body, json_bytes, served.predictor.inputs)
            outputs, about = await self.ask(served, request, traceparent)
            made = protocol.answer(
                request,
                outputs,
                model=served.name,
                version=served.predictor.version,
                parameters=about,
            )
        except SkerryError as error:
            served.measures.failed(error)
            raise
        except Exception as error:
            served.measures.failed(error)
            raise
        served.measures.answered(time.perf_counter() - began)
        return made

    async def ask(
        self, served: Served, request: Request, traceparent: str = ""
    ) -> tuple[Outputs, dict[str, Any]]:
        """Return the outputs to a request, and what is to be said about them."""
        if self._throttle >= Throttle.SPENT:
            raise SparingError(f"no inference now: {self._why}")
        predictor = served.predictor
        outputs = await served.batcher.ask(
            request, rows=request.rows, timeout_s=self._settings.timeout_s
        )
        scores = outputs.get(predictor.scores) if predictor.threshold is not None else None
        if scores is None or scores.ndim != 2 or predictor.threshold is None:
            return outputs, {}
        sure = confidence(scores)
        about: dict[str, Any] = {"answered_by": "device", "confidence": float(sure.min())}
        unsure = np.flatnonzero(sure < predictor.threshold)
        local_only = request.parameters.get("answer") == "local"
        if not len(unsure) or local_only or self._cloud is None or not self._settings.cloud:
            return outputs, about
        better = await self._escalate(served, request, unsure, traceparent)
        if better is not None:
            outputs = {name: values.copy() for name, values in outputs.items()}
            for name, values in better.items():
                if name in outputs and values.shape == outputs[name][unsure].shape:
                    outputs[name][unsure] = values
            about |= {"answered_by": "cloud", "rows_by_cloud": len(unsure)}
        return outputs, about

    async def _escalate(
        self, served: Served, request: Request, rows: NDArray[Any], traceparent: str
    ) -> Outputs | None:
        """Return the cloud's answer for the rows the model is unsure of; None when it is away."""
        assert self._cloud is not None
        asked = replace(request, inputs={k: v[rows] for k, v in request.inputs.items()})
        try:
            async with asyncio.timeout(self._settings.cloud_wait_ms / 1e3):
                found = await self._cloud(served.name, asked.inputs, traceparent)
        except (SkerryError, TimeoutError) as error:
            served.measures.escalated("away")
            log.debug("the cloud did not answer: %s", error)
            return None
        served.measures.escalated("answered")
        return found

    def metrics(self) -> bytes:
        """Return all measures in Prometheus' text format."""
        return Measures.exposition()


def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="model")
