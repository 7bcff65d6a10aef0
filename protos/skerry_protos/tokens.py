"""What a device is handed to join by, and what it signs to renew: both ends read it here.

A join token is `skj1.` and base64url of a small JSON: where the coordinator is, the SHA-256 of its
CA certificate (so that the device trusts nobody else), and a secret that the coordinator knows only
by its hash.
"""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from skerry_protos.errors import ConfigError

PREFIX = "skj1."
TOKEN_LIMIT = 2000
CSR_LIMIT = 4096
"""Largest certificate request, bytes."""
CLOCK_TOLERANCE_S = 300.0
"""How far a device's clock may be from the coordinator's when it joins or renews."""
RENEW_GRACE_S = 90 * 86400.0
"""How long after its expiry a certificate still speaks for a renewal."""


class TokenError(ConfigError):
    """What was given is no join token."""

    code = "token-malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """A join token, taken apart."""

    url: str
    pin: str
    invite: str
    secret: str

    def encode(self) -> str:
        """Return the token as one word."""
        fields = {"u": self.url, "p": self.pin, "i": self.invite, "s": self.secret}
        text = json.dumps(fields, separators=(",", ":"))
        return PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, word: str) -> Self:
        """Return the token that `word` holds, or raise TokenError saying what is wrong with it."""
        word = word.strip()
        hint = "copy it whole from `skerry devices invite`"
        if not word.startswith(PREFIX) or len(word) > TOKEN_LIMIT:
            raise TokenError(f"not a join token: it does not begin with {PREFIX!r}", hint=hint)
        try:
            packed = word.removeprefix(PREFIX).encode("ascii")
            text = base64.b64decode(packed + b"=" * (-len(packed) % 4), b"-_", validate=True)
            fields = json.loads(text)
            token = cls(url=fields["u"], pin=fields["p"], invite=fields["i"], secret=fields["s"])
            if not all(type(fields[key]) is str for key in "upis"):
                raise TypeError
            parts = urlsplit(token.url)
            whole = parts.scheme == "https" and parts.hostname and parts.port is not None
            if not whole or not re.fullmatch("[0-9a-f]{64}", token.pin):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            raise TokenError("the join token is damaged", hint=hint) from error
        return token


def fingerprint(certificate_der: bytes) -> str:
    """Return a certificate's pin: the SHA-256 of its DER, hexadecimal."""
    return hashlib.sha256(certificate_der).hexdigest()


def renewal_message(csr_pem: str, unix_time_s: float) -> bytes:
    """Return what a device signs with its certificate's key to renew after it has expired."""
    return f"skerry-renew-1\n{unix_time_s!r}\n{csr_pem}".encode()
