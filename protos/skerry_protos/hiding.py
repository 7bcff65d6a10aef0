"""Hiding folders from a process that runs the code of others: Landlock (Linux 5.13).

A device hides its keys from its workers so, the coordinator its own from the server side of runs;
both run as the same user. Landlock names what a process may touch, not what it may not: so
everything is allowed but the folders on the way to what is hidden, of which each other entry is.
What is made directly in one of those folders afterwards is out of reach too. Python has no binding;
these are three system calls of the kernel's stable interface (landlock(7)).
"""

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE = 1 << 1, 1 << 2
_OF_FILES = _WRITE_FILE | _READ_FILE
# REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM
_OF_FOLDERS = _OF_FILES | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
_MAKE_BLOCK = 1 << 11
_REFER = 1 << 13  # moving between folders; denied altogether unless it is asked for


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def available() -> int:
    """Return the version of Landlock here; 0 when the system has none."""
    return max(0, _call(_CREATE, None, 0, _VERSION))


def hide(hidden: Iterable[Path]) -> bool:
    """Keep this process and its children from these folders for ever; False where nothing can.

    The process must have given up new privileges (PR_SET_NO_NEW_PRIVS).
    """
    folders = [path.resolve() for path in hidden if path.exists()]
    version = available()
    if not version or not folders:
        return False
    handled = _OF_FOLDERS | (_REFER if version >= 2 else 0)
    ruleset = _call(_CREATE, ctypes.byref(_Ruleset(handled)), ctypes.sizeof(_Ruleset), 0)
    if ruleset < 0:
        return False
    try:
        _allow_all_but(Path("/"), folders, ruleset, handled)
        return _call(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def set_apart() -> bool:
    """Keep this process's hands off those it was forked from; False where nothing can.

    A process in a Landlock domain can neither trace nor read the memory of one outside it, whoever
    its user is. This domain forbids nothing else, but for making block devices.
    """
    ruleset = _call(_CREATE, ctypes.byref(_Ruleset(_MAKE_BLOCK)), ctypes.sizeof(_Ruleset), 0)
    if ruleset < 0:
        return False
    try:
        return _call(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow_all_but(folder: Path, hidden: list[Path], ruleset: int, handled: int) -> None:
    """Allow everything below `folder` that is not hidden."""
    below = [path for path in hidden if path.is_relative_to(folder)]
    if not below:
        _allow(folder, ruleset, handled)
        return
    if folder in below:
        return
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.is_symlink():  # what it points to has its own place
            _allow_all_but(entry, below, ruleset, handled)


def _allow(path: Path, ruleset: int, handled: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone, or not ours to see anyway
    try:
        rights = handled if stat.S_ISDIR(os.fstat(opened).st_mode) else _OF_FILES
        _call(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(_Beneath(rights, opened)), 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: object) -> int:
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *passed))
