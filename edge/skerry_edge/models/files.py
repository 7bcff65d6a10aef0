"""Small files and links that survive a power cut: each change is one rename, synced."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def write_json(path: Path, value: object) -> None:
    """Put a JSON file in place in one step."""
    write_bytes(path, json.dumps(value, sort_keys=True, indent=1).encode())


def read_json(path: Path) -> Any:
    """Return a JSON file's value; None when it is absent or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_bytes(path: Path, content: bytes) -> None:
    """Put a file in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def point(link: Path, to: str) -> None:
    """Let a symbolic link point to `to` (beside it) from now on, in one step."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(to)
    beside.replace(link)
    sync(link.parent)


def remove_link(link: Path) -> None:
    """Take a link away."""
    link.unlink(missing_ok=True)
    sync(link.parent)


def place(source: Path, target: Path) -> None:
    """Have a file's content at `target` too: by a hard link, or a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    sync(target)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
