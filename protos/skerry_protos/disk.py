"""What the disk says, as errors a person can act on."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from skerry_protos.errors import SkerryError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class DiskFullError(SkerryError):
    """There is no room for a blob; what has arrived is kept, so going on later costs nothing."""

    code = "disk-full"


def disk_error(error: OSError, path: Path, doing: str) -> SkerryError:
    """Return the error to raise for an OSError at `path`."""
    if error.errno in _FULL:
        return DiskFullError(
            f"{path}: no room to {doing}",
            hint="free some space there, or move the store; it goes on by itself",
        )
    return SkerryError(f"{path}: cannot {doing}: {error.strerror or error}")


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a SkerryError that names the path and what to do."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, doing) from error
