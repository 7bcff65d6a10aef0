"""Who this device is: a key it made itself, and the coordinator's certificate for it.

enrolment.py gets it; `Identity.load` reads what it left in `<home>/identity`; from two thirds of
its life on, `csr` goes out as a "renew" parcel and `install` puts the answer in place.
cryptography is imported only where a key is used, so that an idle agent does not carry it.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from skerry_protos.errors import ConfigError, TrustError
from skerry_protos.messages import DeviceId

from skerry_edge.links import Credentials

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


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
        return new_csr(load_key(self.folder / "key.pem"), self.device)

    def install(self, certificate_pem: str | bytes) -> "Identity":
        """Put a renewed certificate in place and return the identity with its new life.

        Raise TrustError, and keep the old one, unless it is for this device and key, by our CA.
        """
        pem = certificate_pem.encode() if isinstance(certificate_pem, str) else certificate_pem
        begin, end = check_certificate(self.folder, pem, self.device)
        write_private(self.folder / "certificate.pem", pem)
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
        write_private(self.folder / "identity.json", json.dumps(fields, indent=1).encode())


def leave(home: Path) -> None:
    """Forget the identity: key, certificate and all."""
    shutil.rmtree(home / "identity", ignore_errors=True)


def joining_key(folder: Path) -> "EllipticCurvePrivateKey":
    """Return the key that an unfinished join left, or a new one, on disk before it is used."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / "key.pem"
    if path.exists():
        return load_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    return key


def load_key(path: Path) -> "EllipticCurvePrivateKey":
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


def new_csr(key: "EllipticCurvePrivateKey", name: str) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def check_certificate(folder: Path, pem: bytes, device: DeviceId) -> tuple[float, float]:
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
    if certificate.public_key() != load_key(folder / "key.pem").public_key():
        raise TrustError("the certificate is for another key than this device's")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin.timestamp(), end.timestamp()


def write_private(path: Path, content: bytes) -> None:
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
