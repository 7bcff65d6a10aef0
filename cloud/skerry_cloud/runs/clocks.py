"""The clocks of open questions: still while a run is paused or the coordinator is away."""

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from skerry_protos.messages import RunId

from skerry_cloud.runs.exchange import Exchange
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.store import questions as recorded

GRACE_S = 30.0
"""The least time an open question has when the coordinator is back: devices come back first."""


def deadline_of(exchange: Exchange, options: RunOptions, now: float) -> float:
    """Return when a question closes: its time goes on where its clock was stopped.

    Between two lives of the coordinator somebody may have set the machine's clock: what is left
    is never more than a round has.
    """
    if exchange.left_s is None:
        return exchange.deadline
    left_s = min(exchange.left_s, options.round_deadline_s)
    return now + max(left_s, min(GRACE_S, options.round_deadline_s))


def of(exchanges: Sequence[Exchange], run: RunId) -> Callable[[sa.Connection], None]:
    """Return what records the clocks of these questions."""

    def write(connection: sa.Connection) -> None:
        for one in exchanges:
            recorded.prolong(connection, run, one.number, one.deadline, one.left_s)

    return write
