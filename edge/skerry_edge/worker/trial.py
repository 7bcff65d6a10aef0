"""A trial of a worker: it starts, limits itself, and answers a job that asks for nothing."""

from skerry_protos.messages import Digest

from skerry_edge.worker.messages import Job
from skerry_edge.worker.pool import Workers

TRIAL_S = 20.0
NOTHING = "trial"
"""A kind of app that there is not; refusing it takes everything but an app."""


async def trial(workers: Workers) -> str:
    """Return what keeps a worker from answering, or nothing."""
    job = Job(id=NOTHING, kind=NOTHING, app="", entry="", message_type="", content="", reply="")
    async with workers:
        bounds = workers.bounds(seconds=TRIAL_S, memory_bytes=0, output_bytes=0)
        result = await workers.run(job, Digest(NOTHING), bounds, fresh=True)
    if NOTHING in result.outcome.reason:
        return ""
    lines = result.log_tail.strip().splitlines()
    return f"{result.outcome.reason}: {lines[-1]}" if lines else result.outcome.reason
