"""What an app never sees: a coded model made plain before it, and its update coded after it.

Runs in the worker. An update is coded when the run asks for it, the task is to train, and the app
answers with arrays like those it was sent; everything else crosses as the app made it.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skerry_protos.codecs import FEEDBACK, STYPE, Codec
from skerry_protos.errors import SkerryError
from skerry_protos.records import RecordLimits, Records, encode, read, size_of, together, write
from skerry_protos.tensors import Tensor

from skerry_edge.worker.messages import Job

if TYPE_CHECKING:
    import numpy as np
    from skerry_protos.codecs import updates

SEED = "seed"
"""The key of a task's codec that is not the codec's own: what its dice begin with."""
MODEL_BYTES = 16 * 1024**3
"""Largest model that a coded one may open to; the worker's memory limit is the lower one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A reply as it crosses, and how it came to be."""

    reply: Records
    codec: str = ""
    plain_bytes: int = 0
    feedback: bool = False


def whole(job: Job, content: Records) -> Records:
    """Return what a job is asked with, given the records of its content: what came beside joins."""
    return together(content, read(Path(job.beside))) if job.beside else content


def opened(content: Records) -> tuple[Records, bool]:
    """Return the content with coded groups made plain, and whether the weights are exact."""
    coded = {name: group for name, group in content.arrays.items() if _coded(group)}
    if not coded:
        return content, True
    from skerry_protos.codecs.updates import decode_model, the_coded

    whole, plain = True, dict(content.arrays)
    for name, group in coded.items():
        plain[name], exact = decode_model(the_coded(group), RecordLimits(nbytes=MODEL_BYTES))
        whole = whole and exact
    return Records(arrays=plain, metrics=content.metrics, configs=content.configs), whole


def _coded(group: dict[str, Tensor]) -> bool:
    return len(group) == 1 and next(iter(group.values())).stype == STYPE


def said(job: Job, reply: Records) -> Said:
    """Return the reply as it crosses; what the codec keeps is written where the job says."""
    if not job.codec or job.message_type.partition(".")[0] != "train":
        return Said(reply=reply)
    from skerry_protos.codecs import updates

    codec = Codec.parse({k: v for k, v in job.codec.items() if k != SEED}, source="the task")
    # Read again: an app may have written to the arrays that it was given.
    asked, exact = opened(read(Path(job.content)))
    sent, name = updates.group_to_code(asked), updates.group_to_code(reply)
    if sent is None or name is None or not updates.alike(asked.arrays[sent], reply.arrays[name]):
        return Said(reply=reply)
    coded, after = updates.encode_update(
        codec, asked.arrays[sent], reply.arrays[name], _kept(job), _dice(job), exact=exact
    )
    made = Records(
        arrays={**reply.arrays, name: updates.coded_group(coded)},
        metrics=reply.metrics,
        configs=reply.configs,
    )
    plain_bytes = size_of(encode(reply))
    if exact and codec.name not in FEEDBACK and size_of(encode(made)) >= plain_bytes:
        return Said(reply=reply)  # a model of a few numbers
    keeps = bool(after.residual or after.warm) and bool(job.feedback_out)
    if keeps:
        write(after.to_records(), Path(job.feedback_out))
    return Said(reply=made, codec=str(codec), plain_bytes=plain_bytes, feedback=keeps)


def _kept(job: Job) -> "updates.Feedback":
    """Return what the codec kept of this run; nothing where it cannot be read."""
    from skerry_protos.codecs.updates import Feedback

    if not job.feedback:
        return Feedback()
    try:
        return Feedback.from_records(read(Path(job.feedback)))
    except (SkerryError, OSError) as error:
        sys.stderr.write(f"what the codec kept of this run cannot be read, and is left: {error}\n")
        return Feedback()


def _dice(job: Job) -> "np.random.Generator":
    """Return dice of this device and round alone: with the same seed a run is repeatable."""
    import numpy as np

    named = f"{job.codec.get(SEED, 0)}/{job.device}/{job.round}/{job.group}"
    digest = hashlib.sha256(named.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
