"""The floors under a round: the same bytes through plain loopback sockets, and nothing else.

One process sends the payload to each of N others, each sends it back when it has it whole.

- `copy_floor`: no encryption, no checks, no disk, no training. No framework that moves the bytes
  between processes over loopback can be faster.
- `kept_floor`: the same with what Skerry promises of every reply: mutual TLS, SHA-256 at both ends,
  and the file on disk (fsync) at both ends before it is acknowledged.
"""

import hashlib
import multiprocessing
import os
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path

import trustme


def _receive(connection: socket.socket, buffer: bytearray) -> None:
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other side closed")
        view = view[count:]


def _keep(folder: Path, name: str, data: bytearray) -> None:
    hashlib.sha256(data).digest()
    file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def _context(folder: Path, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "cert.pem")
    return context


def _echo(port: int, size: int, rounds: int, folder: Path | None) -> None:
    buffer = bytearray(size)
    connection: socket.socket = socket.create_connection(("127.0.0.1", port))
    if folder is not None:
        connection = _context(folder, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(connection)
    with connection:
        for _ in range(rounds):
            _receive(connection, buffer)
            if folder is not None:
                hashlib.sha256(buffer).digest()
                _keep(folder, f"reply-{os.getpid()}", buffer)
            connection.sendall(buffer)


def _one(connection: socket.socket, payload: bytes, buffer: bytearray, folder: Path | None) -> None:
    connection.sendall(payload)
    _receive(connection, buffer)
    if folder is not None:
        _keep(folder, f"kept-{connection.fileno()}", buffer)


def _median_round(devices: int, size: int, rounds: int, folder: Path | None) -> float:
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0), backlog=devices) as server:
        port = server.getsockname()[1]
        children = [
            context.Process(target=_echo, args=(port, size, rounds, folder), daemon=True)
            for _ in range(devices)
        ]
        for child in children:
            child.start()
        connections: list[socket.socket] = [server.accept()[0] for _ in range(devices)]
    if folder is not None:
        tls = _context(folder, ssl.PROTOCOL_TLS_SERVER)
        connections = [tls.wrap_socket(each, server_side=True) for each in connections]
    payload = os.urandom(size)
    buffers = [bytearray(size) for _ in range(devices)]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        threads = [
            threading.Thread(target=_one, args=(connection, payload, buffer, folder))
            for connection, buffer in zip(connections, buffers, strict=True)
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


def copy_floor(devices: int, size: int, rounds: int = 7) -> float:
    """Return the median seconds for one round of `size` bytes to and from each of `devices`."""
    return _median_round(devices, size, rounds, None)


def kept_floor(devices: int, size: int, rounds: int = 7) -> float:
    """Return the same with mutual TLS, SHA-256 and fsync, as the module's docstring says."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        authority.cert_pem.write_to_path(folder / "ca.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
        return _median_round(devices, size, rounds, folder)
