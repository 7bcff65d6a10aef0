"""Who this device is: a key it made itself, and the coordinator's certificate for it.

`join` trades a join token for a certificate; `Identity.load` reads what it left in
`<home>/identity`; from two thirds of the certificate's life on, `csr` goes out as a "renew" parcel
and `install` puts the answer in place. `renew_expired` is the way back for a device that was off
for longer than its certificate lived. cryptography is imported only where a key is used, so that an
idle agent does not carry it.
"""

import base64
import http.client
import json
import os
import re
import shutil
import ssl
import tempfile
import time
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from skerry_protos.errors import ConfigError, LinkError, PeerError, RejectedError, TrustError
from skerry_protos.messages import DEVICE_ID_PATTERN, DeviceId
from skerry_protos.tokens import CLOCK_TOLERANCE_S, JoinToken, fingerprint, renewal_message
from skerry_protos.versions import installed_version

from skerry_edge.links import Credentials

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

TIMEOUT_S = 20.0
ANSWER_LIMIT = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkAddress:
    """One way to the coordinator."""

    kind: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An enrolled device: who it is, by which key, and how to reach its coordinator."""

    folder: Path
    device: DeviceId
    node: int
    url: str
    links: tuple[LinkAddress, ...]
    heartbeat_s: float
    valid_from: float
    valid_until: float

    @classmethod
    def load(cls, home: Path) -> Self:
        """Return the identity that `join` left under `home`, or raise ConfigError."""
        folder = home / "identity"
        try:
            fields = json.loads((folder / "identity.json").read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"this device has not joined a coordinator ({folder} is not there)",
                hint="run skerry-agent join TOKEN; `skerry devices invite` prints a token",
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {folder}/identity.json: {error}") from error
        try:
            links = tuple(LinkAddress(**link) for link in fields.pop("links"))
            return cls(folder=folder, links=links, **fields)
        except (TypeError, AttributeError, KeyError) as error:
            raise ConfigError(f"{folder}/identity.json is damaged: {error}") from error

    @property
    def credentials(self) -> Credentials:
        """The files for mutual TLS."""
        return Credentials(
            ca=self.folder / "ca.pem",
            certificate=self.folder / "certificate.pem",
            key=self.folder / "key.pem",
        )

    @property
    def bundle_key_pem(self) -> bytes:
        """The public key that bundles must be signed by."""
        return (self.folder / "bundle.pem").read_bytes()

    def needs_renewal(self, now: float) -> bool:
        """Return whether two thirds of the certificate's life are over."""
        return now >= self.valid_from + (self.valid_until - self.valid_from) * 2 / 3

    def expired(self, now: float) -> bool:
        """Return whether the certificate no longer opens a link."""
        return now >= self.valid_until

    def csr(self) -> str:
        """Return a request for a new certificate for this device's key, PEM."""
        return _csr(_load_key(self.folder / "key.pem"), self.device)

    def install(self, certificate_pem: str | bytes) -> "Identity":
        """Put a renewed certificate in place and return the identity with its new life.

        Raise TrustError, and keep the old one, unless it is for this device and key, by our CA.
        """
        pem = certificate_pem.encode() if isinstance(certificate_pem, str) else certificate_pem
        begin, end = _check_certificate(self.folder, pem, self.device)
        _write(self.folder / "certificate.pem", pem)
        renewed = Identity(
            **{name: getattr(self, name) for name in self.__slots__}
            | {"valid_from": begin, "valid_until": end}
        )
        renewed.save()
        return renewed

    def save(self) -> None:
        """Write identity.json; it comes last, and says that the rest is complete."""
        fields = asdict(self)
        del fields["folder"]
        _write(self.folder / "identity.json", json.dumps(fields, indent=1).encode())


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
    key = _joining_key(folder)
    answer = _call(
        token.url,
        "/v1/enrol",
        {
            "invite": token.invite,
            "secret": token.secret,
            "csr_pem": _csr(key, name),
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

    key = _load_key(identity.folder / "key.pem")
    csr = _csr(key, identity.device)
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


def leave(home: Path) -> None:
    """Forget the identity: key, certificate and all."""
    shutil.rmtree(home / "identity", ignore_errors=True)


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
    _write(folder / "ca.pem", ca.encode())
    begin, end = _check_certificate(folder, certificate, device)
    _write(folder / "certificate.pem", certificate)
    _write(folder / "bundle.pem", bundle_key)
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


def _joining_key(folder: Path) -> "EllipticCurvePrivateKey":
    """Return the key that an unfinished join left, or a new one, on disk before it is used."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / "key.pem"
    if path.exists():
        return _load_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    _write(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    return key


def _load_key(path: Path) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot read this device's key {path}: {error}",
            hint=f"remove {path.parent} and join again under another name",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an elliptic-curve key")
    return key


def _csr(key: "EllipticCurvePrivateKey", name: str) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _check_certificate(folder: Path, pem: bytes, device: DeviceId) -> tuple[float, float]:
    """Return when a certificate begins and ends, or raise TrustError when it is not ours."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise TrustError("the certificate is not from this device's coordinator") from error
    if [name.value for name in names] != [device]:
        raise TrustError(f"the certificate is not for device {device!r}")
    if certificate.public_key() != _load_key(folder / "key.pem").public_key():
        raise TrustError("the certificate is for another key than this device's")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin.timestamp(), end.timestamp()


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


def _write(path: Path, content: bytes) -> None:
    """Put a file in place, readable by its owner only, in one step that survives a power cut."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
