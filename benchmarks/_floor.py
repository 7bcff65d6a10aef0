"""The floor under a round: the same bytes through plain loopback TCP sockets, and nothing else.

One process sends the payload to each of N others, each sends it back when it has it whole. No
encryption, no checks, no disk, no training: no framework that moves the bytes between processes
over loopback can be faster.
"""

import multiprocessing
import socket
import threading
import time


def _echo(port: int, size: int, rounds: int) -> None:
    buffer = bytearray(size)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(rounds):
            _receive(connection, buffer)
            connection.sendall(buffer)


def _receive(connection: socket.socket, buffer: bytearray) -> None:
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other side closed")
        view = view[count:]


def copy_floor(devices: int, size: int, rounds: int = 7) -> float:
    """Return the median seconds for one round of `size` bytes to and from each of `devices`."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0), backlog=devices) as server:
        port = server.getsockname()[1]
        children = [
            context.Process(target=_echo, args=(port, size, rounds), daemon=True)
            for _ in range(devices)
        ]
        for child in children:
            child.start()
        connections = [server.accept()[0] for _ in range(devices)]
    payload = bytes(size)
    buffers = [bytearray(size) for _ in range(devices)]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        threads = [
            threading.Thread(target=lambda c=c, b=b: (c.sendall(payload), _receive(c, b)))
            for c, b in zip(connections, buffers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds.append(time.perf_counter() - began)
    for connection in connections:
        connection.close()
    for child in children:
        child.join(10)
    return sorted(seconds)[len(seconds) // 2]
