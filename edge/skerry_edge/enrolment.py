"""Getting an identity: a join token is traded for a certificate, and an expired one renewed.

Over HTTPS with the standard library alone, and nobody is trusted but the CA that the token pins.
`join` is the way in; `renew_expired` the way back for a device that was off for longer than its
certificate lived.
"""

import base64
import http.client
import json
import re
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skerry_protos.errors import ConfigError, LinkError, PeerError, RejectedError, TrustError
from skerry_protos.messages import DEVICE_ID_PATTERN, DeviceId
from skerry_protos.tokens import CLOCK_TOLERANCE_S, JoinToken, fingerprint, renewal_message
from skerry_protos.versions import installed_version

from skerry_edge.identity import (
    Identity,
    LinkAddress,
    check_certificate,
    joining_key,
    load_key,
    new_csr,
    write_private,
)

TIMEOUT_S = 20.0
ANSWER_LIMIT = 256 * 1024


def join(word: str, home: Path, name: str = "", profile: str = "") -> Identity:
    """Trade a join token for an identity under `home`, and return it.

    The key is made here and never leaves. When the answer is lost, joining again with the same
    token and name goes on with the same key. Nothing is trusted but the CA that the token pins.
    """
    token = JoinToken.decode(word)
    folder = home / "identity"
    if (folder / "identity.json").exists():
        joined = Identity.load(home)
        raise ConfigError(
            f"this device has already joined {joined.url} as {joined.device!r}",
            hint=f"use another --home, or remove {folder} to join again under another name",
        )
    if name and not re.fullmatch(DEVICE_ID_PATTERN, name):
        raise ConfigError(
            f"{name[:80]!r} cannot name a device", hint="use 1 to 64 letters, digits, '-' and '_'"
        )
    ca = _pinned_ca(token)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    key = joining_key(folder)
    answer = _call(
        token.url,
        "/v1/enrol",
        {
            "invite": token.invite,
            "secret": token.secret,
            "csr_pem": new_csr(key, name),
            "name": name,
            "profile": profile,
            "agent_version": installed_version("skerry-edge"),
        },
        trusted_context(ca),
    )
    return _settle(folder, token.url, ca, answer)


def renew_expired(identity: Identity) -> Identity:
    """Renew a certificate that no longer opens a link, by its key, over HTTPS."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = load_key(identity.folder / "key.pem")
    csr = new_csr(key, identity.device)
    now = time.time()
    signature = key.sign(renewal_message(csr, now), ec.ECDSA(hashes.SHA256()))
    answer = _call(
        identity.url,
        "/v1/renew",
        {
            "certificate_pem": (identity.folder / "certificate.pem").read_text(),
            "csr_pem": csr,
            "unix_time_s": now,
            "signature": base64.b64encode(signature).decode(),
        },
        trusted_context((identity.folder / "ca.pem").read_text()),
    )
    try:
        return identity.install(str(answer["certificate_pem"]))
    except KeyError as error:
        raise PeerError("the coordinator's answer holds no certificate") from error


def trusted_context(ca_pem: str) -> ssl.SSLContext:
    """Return a client context that trusts this CA and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def _pinned_ca(token: JoinToken) -> str:
    """Return the CA certificate that the token pins, fetched without trusting anybody.

    The clock is compared first: a device whose clock is far off would refuse every certificate,
    with a message that says nothing of clocks.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    answer = _call(token.url, "/v1/ca", None, context)
    try:
        ca = str(answer["ca_pem"])
        found = fingerprint(ssl.PEM_cert_to_DER_cert(ca))
        theirs = float(answer["unix_time_s"])
    except (KeyError, ValueError, TypeError) as error:
        raise PeerError(f"{token.url} does not answer as a Skerry coordinator does") from error
    if found != token.pin:
        raise TrustError(
            f"{token.url} shows another certificate authority ({found[:16]}…) than the token pins "
            f"({token.pin[:16]}…)",
            hint="somebody is in between, or the coordinator is a new one: ask for a new token",
        )
    _compare_clocks(time.time(), theirs)
    return ca


def _compare_clocks(ours: float, theirs: float) -> None:
    if abs(ours - theirs) > CLOCK_TOLERANCE_S:
        said = [time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one)) for one in (ours, theirs)]
        raise TrustError(
            f"this device's clock says {said[0]}, the coordinator's {said[1]}",
            hint="set the clock (timedatectl set-ntp true), then try again",
        )


def _settle(folder: Path, url: str, ca: str, answer: dict[str, Any]) -> Identity:
    """Check what the coordinator answered and keep it, identity.json last."""
    try:
        device = DeviceId(str(answer["device"]))
        certificate = str(answer["certificate_pem"]).encode()
        bundle_key = str(answer["bundle_key_pem"]).encode()
        links = tuple(
            LinkAddress(kind=str(link["kind"]), url=str(link["url"])) for link in answer["links"]
        )
        node, heartbeat_s = int(answer["node"]), float(answer["heartbeat_s"])
    except (KeyError, ValueError, TypeError) as error:
        raise PeerError(f"{url} answered without {error}") from error
    if not re.fullmatch(DEVICE_ID_PATTERN, device):
        raise PeerError(f"{url} named this device {device[:80]!r}, which cannot be a name")
    write_private(folder / "ca.pem", ca.encode())
    begin, end = check_certificate(folder, certificate, device)
    write_private(folder / "certificate.pem", certificate)
    write_private(folder / "bundle.pem", bundle_key)
    identity = Identity(
        folder=folder,
        device=device,
        node=node,
        url=url,
        links=links,
        heartbeat_s=heartbeat_s,
        valid_from=begin,
        valid_until=end,
    )
    identity.save()
    return identity


def _call(
    url: str, path: str, body: dict[str, Any] | None, context: ssl.SSLContext
) -> dict[str, Any]:
    """Return the JSON object that the coordinator answers; translate every failure."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=context
    )
    try:
        if body is None:
            connection.request("GET", path)
        else:
            content = json.dumps(body).encode()
            connection.request("POST", path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read(ANSWER_LIMIT + 1)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(url, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise LinkError(
            f"cannot reach the coordinator at {url}: {error or type(error).__name__}",
            hint="check that it runs, and that this device may reach that port",
        ) from error
    finally:
        connection.close()
    try:
        found = json.loads(text) if len(text) <= ANSWER_LIMIT else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PeerError(f"{url}{path} does not answer as a Skerry coordinator does")
    if answer.status != 200:
        raise _refused(url, found, answer.getheader("Date"), status=answer.status)
    return found


def _untrusted(url: str, error: ssl.SSLCertVerificationError) -> TrustError:
    host = urlsplit(url).hostname
    match error.verify_code:
        case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
            return TrustError(
                f"the coordinator's certificate does not name {host!r}",
                hint=f"start it with --host {host}",
            )
        case 9 | 10:  # X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED
            return TrustError(
                f"by this device's clock the coordinator's certificate is not valid "
                f"({error.verify_message})",
                hint="check the clock: timedatectl",
            )
    return TrustError(f"{url} is not the coordinator that was pinned: {error.verify_message}")


def _refused(url: str, found: dict[str, Any], date: str | None, *, status: int) -> Exception:
    """Return the coordinator's refusal as an error; a clock's difference explains some of them."""
    error = found.get("error")
    if not isinstance(error, dict):
        return PeerError(f"{url} answered {status} without saying why")
    if error.get("code") == "clock" and date:
        try:
            _compare_clocks(time.time(), parsedate_to_datetime(date).timestamp())
        except TrustError as clocks:
            return clocks
        except ValueError:
            pass
    return RejectedError(str(error.get("code", status)), str(error.get("message", ""))[:500])
