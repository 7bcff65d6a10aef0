"""Floods a port of this machine with what no honest peer sends, bounded in count and in time.

    python -m tests.faults.flooder KIND PORT COUNT SECONDS

`slow`: COUNT connections at once, each with the beginning of a handshake and a byte a second after
it. `noise`: COUNT connections one after another, 32 at once, each with something malformed. `asks`:
the same over TLS, malformed HTTP requests. Prints how many connections it made.
"""

import asyncio
import contextlib
import random
import resource
import ssl
import sys
import time

HOST = "127.0.0.1"
AT_ONCE = 32
HELLO = bytes.fromhex("16030100c8010000c40303")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM"
CONNECT = b"\x10\xff\xff\xff\x7f\x00\x04MQTT\x05"
ASKS = (
    b"GET /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 4000 + b"\r\n\r\n",
    b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{",
    b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"\x00" * 2000,
)


async def slow(port: int, count: int, until: float) -> int:
    """Hold connections whose handshake never ends."""
    made = 0

    async def one(number: int) -> None:
        nonlocal made
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, port)
            made += 1
            try:
                writer.write((HELLO, PREFACE, CONNECT)[number % 3])
                while time.monotonic() < until and not reader.at_eof():
                    writer.write(b"\x00")
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1.0):
                            await reader.read(4096)
            finally:
                writer.close()

    await asyncio.gather(*(one(number) for number in range(count)))
    return made


async def noise(port: int, count: int, until: float, *, tls: bool = False) -> int:
    """Make connection after connection, each malformed in its own way."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    dice, left, made = random.Random(port), iter(range(count)), 0

    async def many() -> None:
        nonlocal made
        for number in left:
            if time.monotonic() > until:
                return
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5.0):
                    reader, writer = await asyncio.open_connection(
                        HOST, port, ssl=context if tls else None
                    )
                    made += 1
                    said = (HELLO, PREFACE, CONNECT, b"")[number % 4] + dice.randbytes(200)
                    writer.write(ASKS[number % len(ASKS)] if tls else said)
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.2):
                            await reader.read(4096)
                    writer.transport.abort()

    await asyncio.gather(*(many() for _ in range(AT_ONCE)))
    return made


def main() -> None:
    """Flood."""
    kind, port, count, seconds = sys.argv[1], *map(int, sys.argv[2:5])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    until = time.monotonic() + seconds
    print("begins", flush=True)
    if kind == "slow":
        made = asyncio.run(slow(port, count, until))
    else:
        made = asyncio.run(noise(port, count, until, tls=kind == "asks"))
    print(made)


if __name__ == "__main__":
    main()
