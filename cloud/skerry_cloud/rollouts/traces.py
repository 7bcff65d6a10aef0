"""A rollout as a trace, told when it has ended: each device from its order to where it came.

rollout > release (of one device) > on the device: fetch, self-test
"""

import sqlalchemy as sa
from skerry_protos import tracing

from skerry_cloud.store import Store
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.rollouts import Rollout, RolloutDevice

SCOPE = "skerry.rollouts"
BAD = frozenset({"failed", "refused"})


async def tell_rollout(store: Store, name: str) -> None:
    """Tell of a rollout that has ended, if traces are sent."""
    if not tracing.on():
        return

    def read(
        connection: sa.Connection,
    ) -> tuple[Rollout | None, list[RolloutDevice], dict[str, float]]:
        asked = kept.orders(connection, name)
        return kept.find(connection, name), kept.members(connection, name), asked

    rollout, members, asked = await store.read(read)
    if rollout is None or rollout.ended_at is None:
        return
    root, trace = tracing.span_id(rollout.id), tracing.trace_id(rollout.id)
    for each in members:
        if each.device not in asked:
            continue
        tracing.tell(
            tracing.Span(
                name="release",
                trace=trace,
                span=tracing.span_id(rollout.id, each.device),
                parent=root,
                scope=SCOPE,
                begin=asked[each.device],
                end=each.changed_at or rollout.ended_at,
                failed=each.why if each.state.value in BAD else "",
                values={"device": each.device, "wave": each.wave, "state": each.state.value},
            )
        )
    tracing.tell(
        tracing.Span(
            name="rollout",
            trace=trace,
            span=root,
            scope=SCOPE,
            begin=rollout.created_at,
            end=rollout.ended_at,
            failed=rollout.why if rollout.state.value != "completed" else "",
            values={
                "rollout": rollout.id,
                "model": f"{rollout.model}@{rollout.version}",
                "state": rollout.state.value,
            },
        )
    )
