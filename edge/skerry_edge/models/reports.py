"""What came of updates, told to the coordinator: the newest of each model, until it has it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from skerry_protos.artefacts import Phase
from skerry_protos.errors import DeadlineError, RejectedError
from skerry_protos.messages import Parcel, ParcelId, ParcelKind
from skerry_protos.v1 import models_pb2

from skerry_edge.models.files import read_json, write_json
from skerry_edge.models.slots import Release

log = logging.getLogger(__name__)

LASTS_S = 24 * 3600.0
AGAIN_S = 5.0


class Sender(Protocol):
    """Who delivers parcels (skerry_edge.routes.Route)."""

    async def deliver(self, parcel: Parcel) -> None: ...


class Reports:
    """The newest report on each model, on the disk before it is sent."""

    def __init__(self, folder: Path, sender: Sender, now: Callable[[], float]) -> None:
        """Keep reports in `folder`; `now` is the clock that deadlines are in."""
        self._folder, self._sender, self._now = folder, sender, now
        self._newest: dict[str, dict[str, Any]] = {}
        self.choice: Callable[[str, str], models_pb2.Choice | None] = lambda _model, _digest: None
        """What was chosen of a model's release with a digest, where there was a choice."""
        self._wake = asyncio.Event()
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.json"):
            kept = read_json(path)
            if isinstance(kept, dict) and {"model", "sequence", "sent", "phase"} <= kept.keys():
                self._newest[str(kept["model"])] = kept
        self._wake.set()

    def newest(self, model: str) -> Mapping[str, Any] | None:
        """Return the newest report on a model, or None."""
        return self._newest.get(model)

    def say(
        self,
        phase: Phase,
        release: Release,
        *,
        why: str = "",
        readings: Mapping[str, float] | None = None,
        serving: Release | None = None,
    ) -> None:
        """Report on a release; what serves now is said too."""
        held = self._newest.get(release.model, {})
        report = {
            "model": release.model,
            "rollout": release.rollout,
            "target": release.target,
            "digest": release.digest,
            "phase": phase.value,
            "why": why[:500],
            "readings": dict(readings or {}),
            "serving": serving.target if serving else "",
            "serving_digest": serving.digest if serving else "",
            "unix_s": time.time(),
            "sequence": int(held.get("sequence", 0)) + 1,
            "sent": False,
        }
        self._newest[release.model] = report
        self._keep(report)
        self._wake.set()

    def again(self, model: str) -> None:
        """Report once more what holds: the choice among a release's variants has changed."""
        held = self._newest.get(model)
        if held is not None:
            self._newest[model] = report = {
                **held,
                "sequence": int(held["sequence"]) + 1,
                "sent": False,
            }
            self._keep(report)
            self._wake.set()

    def _keep(self, report: Mapping[str, Any]) -> None:
        # A full disk loses no more than the word itself, and only if the power fails as well.
        with contextlib.suppress(OSError):
            write_json(self._folder / f"{report['model']}.json", report)

    async def run(self) -> None:
        """Send what has not been sent, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for model in list(self._newest):
                report = self._newest[model]
                if not report["sent"] and not await self._send(report):
                    asyncio.get_running_loop().call_later(AGAIN_S, self._wake.set)

    async def _send(self, report: dict[str, Any]) -> bool:
        """Return whether this report need not be sent again."""
        body = models_pb2.UpdateReport(
            model=report["model"],
            rollout=report["rollout"],
            target=report["target"],
            digest=bytes.fromhex(report["digest"]),
            phase=report["phase"],
            why=report["why"],
            readings=report["readings"],
            sequence=report["sequence"],
            unix_time_s=report["unix_s"],
            serving=report["serving"],
            serving_digest=bytes.fromhex(report["serving_digest"]),
            choice=await asyncio.to_thread(self.choice, report["model"], report["digest"]),
        ).SerializeToString()
        parcel = Parcel(
            id=ParcelId(f"report-{report['model']}-{report['sequence']}"),
            kind=ParcelKind.UPDATE_REPORT,
            deadline_unix_s=self._now() + LASTS_S,
            body=body,
        )
        try:
            await self._sender.deliver(parcel)
        except DeadlineError:
            return False
        except RejectedError as error:
            log.warning("a report on model %s was not taken: %s", report["model"], error)
        if self._newest.get(report["model"]) is report:
            report["sent"] = True
            self._keep(report)
        return True
