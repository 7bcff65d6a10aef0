"""Errors, grouped by what the one who catches them does next.

Every error a person may see is one line that names the thing, what is wrong, what was expected and
what to do next. `code` is stable and documented in docs/errors.md.
"""

from enum import StrEnum


class SkerryError(Exception):
    """The root: a command line prints it in one line and exits with `exit_code`."""

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(SkerryError):
    """An operator has to edit something."""

    code = "config"
    exit_code = 2


class LinkError(SkerryError):
    """The network failed: wait, then try again."""

    code = "link"
    exit_code = 4


class DeadlineError(LinkError):
    """A wait reached its deadline; the message says what was waited for."""

    code = "deadline"
    exit_code = 5


class PeerError(SkerryError):
    """The other side broke the protocol: drop what it sent."""

    code = "peer"
    exit_code = 6


class TrustError(SkerryError):
    """A signature, hash, identity or version is wrong: refuse, keep what runs."""

    code = "trust"
    exit_code = 7


class RejectedError(SkerryError):
    """The other side will never accept this parcel, blob or stream; `code` is its reason."""

    exit_code = 8

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RefusedError(SkerryError):
    """The other side refused the session; `retry_after_s` is 0 when trying again is useless."""

    exit_code = 7

    def __init__(self, code: str, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class RefusalCode(StrEnum):
    """Why a session is refused (Refusal.code)."""

    VERSION = "version"  # the agent is newer than the coordinator, or too old
    REVOKED = "revoked"  # the device was revoked
    UNKNOWN_DEVICE = "unknown-device"
    IDENTITY = "identity"  # the frame's device is not the certificate's
    UNKNOWN_SESSION = "unknown-session"  # say Hello again
    BUSY = "busy"  # too many devices at once; retry later
    TAKEN_OVER = "taken-over"  # the same device connected again elsewhere
    MALFORMED = "malformed"


class RejectCode(StrEnum):
    """Why a parcel is rejected for good (Reject.code)."""

    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    EXPIRED = "expired"
    UNEXPECTED = "unexpected"  # not asked for, or for a run that has ended
    BLOB = "blob"  # a blob it refers to is absent or does not match its digest
    UNTRUSTED = "untrusted"  # the bundle's signature is wrong
