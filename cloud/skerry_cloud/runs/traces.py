"""A run as a trace: its questions, each device's task, what crosses, and what the server side does.

    run > question > task > deliver, (on the device: work), intake
    run > aggregate

`task` is from the question to the device's answer; `aggregate` is what the server side does between
the end of a question and its next one. See skerry_protos.tracing.
"""

import time
from contextlib import AbstractContextManager

from skerry_protos import tracing
from skerry_protos.messages import RunId

from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.store.runs import Run

SCOPE = "skerry.runs"


class Traces:
    """Tells of one run's spans."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._closed_at = 0.0

    def asks(self, round_: int) -> None:
        """The server side has computed, and asks again."""
        if self._closed_at:
            self._tell("aggregate", tracing.new_span_id(), self._closed_at, round=round_)
            self._closed_at = 0.0

    def settled(self, exchange: Exchange, part: Part, why: str = "") -> None:
        """A device has answered its task, or will not."""
        tracing.tell(
            tracing.Span(
                name="task",
                trace=tracing.trace_id(self._run.id),
                span=tracing.span_id(part.task),
                parent=_question(self._run.id, exchange),
                scope=SCOPE,
                begin=exchange.asked_at,
                end=time.time(),
                failed=why,
                values={"task": part.task, "device": part.device, "round": exchange.round},
            )
        )

    def closed(self, exchange: Exchange) -> None:
        """A question is over."""
        self._tell(
            f"question {exchange.phase}",
            _question(self._run.id, exchange),
            exchange.asked_at,
            round=exchange.round,
            phase=exchange.phase,
            devices=len(exchange.parts),
            replied=exchange.count(Outcome.REPLIED),
            late=exchange.count(Outcome.LATE),
        )
        self._closed_at = time.time()

    def ended(self, state: str, why: str, round_: int) -> None:
        """The run is over."""
        self.asks(round_)
        tracing.tell(
            tracing.Span(
                name="run",
                trace=tracing.trace_id(self._run.id),
                span=tracing.span_id(self._run.id),
                scope=SCOPE,
                begin=self._run.created_at,
                end=time.time(),
                failed=why if state == "failed" else "",
                values={"run": self._run.id, "name": self._run.name, "state": state},
            )
        )

    def _tell(self, name: str, span: str, begin: float, **values: tracing.Value) -> None:
        tracing.tell(
            tracing.Span(
                name=name,
                trace=tracing.trace_id(self._run.id),
                span=span,
                parent=tracing.span_id(self._run.id),
                scope=SCOPE,
                begin=begin,
                end=time.time(),
                values={"run": self._run.id, **values},
            )
        )


def delivering(run: RunId, part: Part) -> AbstractContextManager[object]:
    """Tell of a task's way to its device, up to the acknowledgement."""
    return _crossing("deliver", run, part)


def taking_in(run: RunId, part: Part) -> AbstractContextManager[object]:
    """Tell of a reply's content on its way here."""
    return _crossing("intake", run, part)


def _crossing(name: str, run: RunId, part: Part) -> AbstractContextManager[object]:
    return tracing.spanning(
        name, trace=run, parent=tracing.span_id(part.task), scope=SCOPE, device=part.device
    )


def _question(run: RunId, exchange: Exchange) -> str:
    return tracing.span_id(run, "question", exchange.number)
