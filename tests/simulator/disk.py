"""A disk that can lose what was not synced, over real files; each node has its own folder.

Every change that a node makes to its files passes here. That gives two things that no kill of a
process can: a node can die in the middle of a function, between any two changes, and a power cut
takes back what no fsync had made lasting. As on a journalling file system, names become lasting in
the order in which they changed, with the next fsync of any file or folder of that disk; the bytes
of a file only with its own fsync.
"""

# It stands below pathlib, which would call it again.
# ruff: noqa: PTH101, PTH102, PTH110, PTH113, PTH115, PTH116

import builtins
import contextlib
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.simulator.loop import NODE, PowerCutError

_WRITES = os.O_WRONLY | os.O_RDWR
_FILE_MODES = frozenset("wax+")


class Disk:
    """One node's disk, which outlives the node's lives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.changes = 0
        self.on_death: Callable[[], None] = lambda: None
        self._left = -1  # changes until the node dies; -1: it does not
        self._prefix = f"{root}/"
        self._aside = f"{root}.aside"  # what was replaced or removed, until that is lasting
        self._undo: list[Callable[[], None]] = []
        self._unsynced: dict[int, str] = {}  # files by inode, and where they are
        self._held = 0
        root.mkdir(parents=True)
        os.mkdir(self._aside)

    def owns(self, path: str) -> bool:
        """Return whether a path is on this disk."""
        return path.startswith(self._prefix)

    def arm(self, changes: int) -> None:
        """Let the node die after so many more changes."""
        self._left = changes

    def before(self) -> None:
        """Raise PowerCutError when the node is dead, or dies now."""
        node = NODE.get()
        if node is not None and not node.alive:
            raise PowerCutError
        self.changes += 1
        if self._left < 0:
            return
        self._left -= 1
        if self._left < 0:
            self.on_death()
            raise PowerCutError

    # What happens to files. Each is told before it happens, but `made` and `opened`.

    def made(self, path: str) -> None:
        """Note a new folder."""
        self._undo.append(lambda: shutil.rmtree(path, ignore_errors=True))

    def opened(self, file: int, path: str, *, new: bool) -> None:
        """Note a file that is written from now on."""
        if new:
            self._undo.append(lambda: _gone(path))
        self._unsynced[os.fstat(file).st_ino] = path

    def removing(self, path: str) -> None:
        """Note a file that goes."""
        held = self._hold(path)
        if held is not None:
            self._undo.append(lambda: _back(held, path))

    def renaming(self, source: str, target: str) -> None:
        """Note a file that gets another name, and what had that name before."""
        held = self._hold(target)
        inode = os.stat(source).st_ino
        if inode in self._unsynced:
            self._unsynced[inode] = target

        def undo() -> None:
            _back(target, source)
            if inode in self._unsynced:
                self._unsynced[inode] = source
            if held is not None:
                _back(held, target)

        self._undo.append(undo)

    def synced(self, file: int) -> None:
        """Make lasting: this file's bytes, and all names until now."""
        self._unsynced.pop(os.fstat(file).st_ino, None)
        self._undo.clear()

    def _hold(self, path: str) -> str | None:
        """Keep a second name of what is about to go."""
        self._held += 1
        held = f"{self._aside}/{self._held}"
        try:
            _REAL["link"](path, held)
        except OSError:
            return None
        return held

    # What a cut of the power leaves.

    def cut_power(self, dice: random.Random) -> str:
        """Take back names and bytes that were not lasting; return in words what."""
        lost = dice.randint(0, len(self._undo))
        for undo in reversed(self._undo[len(self._undo) - lost :]):
            undo()
        torn = 0
        for inode, path in sorted(self._unsynced.items(), key=lambda item: item[1]):
            share = dice.choice([0.0, 0.5, 1.0])
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if status.st_ino == inode and share < 1.0:
                    os.chmod(path, 0o600)
                    os.truncate(path, int(status.st_size * share))
                    torn += 1
        words = f"{lost} of {len(self._undo)} names and {torn} files are lost"
        self._undo.clear()
        self._unsynced.clear()
        return words


_REAL: dict[str, Any] = {
    name: getattr(os, name)
    for name in ("open", "fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link")
}
_REAL_OPEN = io.open
_REAL_RMTREE = shutil.rmtree


def _gone(path: str) -> None:
    with contextlib.suppress(OSError):
        _REAL["unlink"](path)


def _back(held: str, path: str) -> None:
    with contextlib.suppress(OSError):
        _REAL["replace"](held, path)


class _Watch:
    """The functions that stand for those of `os`, `io` and `shutil` during a story."""

    def __init__(self, disks: list[Disk]) -> None:
        self._disks = disks

    def of(self, path: Any) -> Disk | None:
        if isinstance(path, int):
            return None
        text = os.fspath(path)
        if not isinstance(text, str):
            return None
        return next((disk for disk in self._disks if disk.owns(text)), None)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        disk = self.of(path) if dir_fd is None and flags & _WRITES else None
        if disk is None:
            return int(_REAL["open"](path, flags, mode, dir_fd=dir_fd))
        disk.before()
        new = not os.path.exists(path)
        file = int(_REAL["open"](path, flags, mode))
        disk.opened(file, os.fspath(path), new=new)
        return file

    def open_file(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        disk = self.of(file) if _FILE_MODES & set(mode) else None
        if disk is None:
            return _REAL_OPEN(file, mode, *args, **kwargs)
        disk.before()
        new = not os.path.exists(file)
        opened = _REAL_OPEN(file, mode, *args, **kwargs)
        disk.opened(opened.fileno(), os.fspath(file), new=new)
        return opened

    def fsync(self, file: int) -> None:
        disk = self.of(os.readlink(f"/proc/self/fd/{file}"))
        if disk is not None:
            disk.before()
            disk.synced(file)  # the real one is not needed: the folder is in memory

    def rename(self, source: Any, target: Any, **kwargs: Any) -> None:
        disk = self.of(source)
        if disk is not None:
            disk.before()
            if os.path.isfile(source):
                disk.renaming(os.fspath(source), os.fspath(target))
        _REAL["rename"](source, target, **kwargs)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        disk = self.of(path) if dir_fd is None else None
        if disk is not None:
            disk.before()
            disk.removing(os.fspath(path))
        _REAL["unlink"](path, dir_fd=dir_fd)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        disk = self.of(path) if dir_fd is None else None
        if disk is not None:
            disk.before()
        _REAL["mkdir"](path, mode, dir_fd=dir_fd)
        if disk is not None:
            disk.made(os.fspath(path))

    def link(self, source: Any, target: Any, **kwargs: Any) -> None:
        disk = self.of(target)
        if disk is not None:
            disk.before()
        _REAL["link"](source, target, **kwargs)
        if disk is not None:
            place = os.fspath(target)
            disk._undo.append(lambda: _gone(place))

    def rmtree(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Remove a folder in one step: nothing that must last is ever removed so."""
        disk = self.of(path)
        if disk is not None:
            disk.before()
        _REAL_RMTREE(path, *args, **kwargs)


@contextlib.contextmanager
def watched(disks: list[Disk]) -> Iterator[None]:
    """Have every change to these disks pass through them."""
    watch = _Watch(disks)
    places: list[tuple[Any, str, Any]] = [
        (os, "open", watch.open),
        (os, "fsync", watch.fsync),
        (os, "rename", watch.rename),
        (os, "replace", watch.rename),
        (os, "unlink", watch.unlink),
        (os, "remove", watch.unlink),
        (os, "mkdir", watch.mkdir),
        (os, "link", watch.link),
        (io, "open", watch.open_file),
        (builtins, "open", watch.open_file),
        (shutil, "rmtree", watch.rmtree),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    for module, name, value in places:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
