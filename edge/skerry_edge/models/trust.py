"""Asking the TUF client (verify.py): in a child process, or in this one for simulated devices."""

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from skerry_protos.errors import SkerryError

VERIFY_S = 60.0
"""Longest that verifying may take: a slow card and a cold cache, not a network."""

Verify = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Take the fields of a Question, return those of a Verdict; SkerryError when it cannot be asked."""


async def in_child(question: dict[str, Any]) -> dict[str, Any]:
    """Verify in a child process that ends with its answer."""
    asked = dict(question)
    for name in ("images", "director"):
        asked[name] = {key: base64.b64encode(data).decode() for key, data in asked[name].items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "skerry_edge.models.verify",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(VERIFY_S):
            out, err = await process.communicate(json.dumps(asked).encode())
    except TimeoutError:
        raise SkerryError(f"verifying an update took longer than {VERIFY_S:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        said = " ".join(err.decode(errors="replace").split()[-40:])
        raise SkerryError(f"an update could not be verified: {said[:400]}")
    return dict(json.loads(out))


async def in_process(question: dict[str, Any]) -> dict[str, Any]:
    """Verify in a thread of this process, which then carries python-tuf (simulated devices)."""
    from dataclasses import asdict

    from skerry_edge.models import verify

    verdict = await asyncio.to_thread(verify.verify, verify.Question(**question))
    return asdict(verdict)


def one_at_a_time(verify: Verify) -> Verify:
    """Return the same for several who ask: what one writes the other must not write over."""
    turn = asyncio.Lock()

    async def ask(question: dict[str, Any]) -> dict[str, Any]:
        async with turn:
            return await verify(question)

    return ask
