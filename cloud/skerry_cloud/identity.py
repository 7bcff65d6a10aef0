"""The coordinator's own certificate authority: who a device is, proved by a key it made itself.

The authority is made on the first start, in `<home>/ca`: a P-256 key and certificate that sign
device certificates (7 days, TLS client only) and the coordinator's server certificate, and an
ed25519 key that signs the bundles devices run. Nothing here touches the database: who may have a
certificate is decided in store/devices.py.
"""

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from skerry_protos.errors import ConfigError, RejectedError
from skerry_protos.messages import DEVICE_ID_PATTERN, DeviceId
from skerry_protos.tokens import CSR_LIMIT, fingerprint, renewal_message

from skerry_cloud.certificates import (
    key_fingerprint,
    key_usage,
    named,
    private_pem,
    requested_key,
    server_names,
)
from skerry_cloud.files import write_private

COORDINATOR = "skerry-coordinator"
"""The common name of the coordinator's own certificate; no device may be called so."""
DEVICE_LIFE = timedelta(days=7)
SERVER_LIFE = timedelta(days=397)
AUTHORITY_LIFE = timedelta(days=3650)
BACKDATED = timedelta(minutes=10)
"""How much earlier than now a certificate begins, for clocks that run behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCredentials:
    """PEM files of the coordinator's own certificate."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a server context for the operator API; who calls is said by a bearer token."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A device certificate as it goes to the device and into the database."""

    pem: str
    serial: str
    key_sha256: str
    issued_at: float
    expires_at: float


class Authority:
    """The coordinator's certificate authority and bundle signer."""

    def __init__(
        self,
        *,
        folder: Path,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        bundle_key: ed25519.Ed25519PrivateKey,
        device_life: timedelta = DEVICE_LIFE,
    ) -> None:
        self._folder = folder
        self._key = key
        self._certificate = certificate
        self._bundle_key = bundle_key
        self._device_life = device_life

    @classmethod
    def open(cls, home: Path, *, device_life: timedelta = DEVICE_LIFE) -> Self:
        """Return the authority in `<home>/ca`, made now if this is the first start."""
        folder = home / "ca"
        try:
            if not (folder / "ca.pem").exists():
                _make_authority(folder)
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            bundle_key = serialization.load_pem_private_key(
                (folder / "bundle.key").read_bytes(), None
            )
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"cannot read the certificate authority in {folder}: {error}",
                hint="put the folder back from a backup; devices trust no other authority",
            ) from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or not isinstance(bundle_key, ed25519.Ed25519PrivateKey)
            or key.public_key() != certificate.public_key()
        ):
            raise ConfigError(
                f"ca.key, ca.pem and bundle.key in {folder} do not belong together",
                hint="put the folder back from a backup; devices trust no other authority",
            )
        return cls(
            folder=folder,
            key=key,
            certificate=certificate,
            bundle_key=bundle_key,
            device_life=device_life,
        )

    @property
    def certificate_file(self) -> Path:
        """The authority's certificate, for clients to trust."""
        return self._folder / "ca.pem"

    @property
    def certificate_pem(self) -> str:
        """The authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def pin(self) -> str:
        """What a join token says of this authority."""
        return fingerprint(self._certificate.public_bytes(serialization.Encoding.DER))

    @property
    def bundle_key_pem(self) -> str:
        """The public key that devices check bundles with."""
        return (
            self._bundle_key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign_bundle(self, manifest: bytes) -> bytes:
        """Return the ed25519 signature of a bundle's manifest."""
        return self._bundle_key.sign(manifest)

    def requested(self, csr_pem: str) -> str:
        """Return the fingerprint of the key that signed a request, or raise RejectedError."""
        return key_fingerprint(requested_key(csr_pem))

    def issue(self, device: DeviceId, csr_pem: str, now: float) -> Issued:
        """Return a certificate for `device` and the key that signed the request.

        Raise RejectedError for a request that is too large, damaged, unsigned or of another kind
        of key. What the request says of its subject is ignored.
        """
        public = requested_key(csr_pem)
        # No later than our own end, and from whole seconds: a certificate holds nothing finer.
        begin = datetime.fromtimestamp(int(now), UTC)
        end = min(begin + self._device_life, self._certificate.not_valid_after_utc)
        uri = x509.UniformResourceIdentifier(f"spiffe://skerry/device/{device}")
        certificate = (
            self._leaf(device, public, begin - BACKDATED, end)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            serial=f"{certificate.serial_number:x}",
            key_sha256=key_fingerprint(public),
            issued_at=begin.timestamp(),
            expires_at=end.timestamp(),
        )

    def server(self, hosts: Iterable[str]) -> ServerCredentials:
        """Return the coordinator's certificate for these names, made anew when it is due."""
        folder = self._folder.parent / "tls"
        made = ServerCredentials(
            ca=self.certificate_file,
            certificate=folder / "server.pem",
            key=folder / "server.key",
        )
        names = server_names(hosts)
        if not self._still_good(made, names):
            key = ec.generate_private_key(ec.SECP256R1())
            begin = datetime.now(UTC) - BACKDATED
            end = min(begin + SERVER_LIFE, self._certificate.not_valid_after_utc)
            usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            certificate = (
                self._leaf(COORDINATOR, key.public_key(), begin, end)
                .add_extension(x509.SubjectAlternativeName(names), critical=False)
                .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
                .sign(self._key, hashes.SHA256())
            )
            # The certificate goes first: a crash between the two leaves a pair that does not fit,
            # which the next start sees and makes again.
            write_private(made.certificate, certificate.public_bytes(serialization.Encoding.PEM))
            write_private(made.key, private_pem(key))
        return made

    def prove_renewal(
        self, *, certificate_pem: str, csr_pem: str, unix_time_s: float, signature: bytes
    ) -> tuple[DeviceId, str, float]:
        """Return the device, serial and end of an old certificate of ours whose key signed this.

        Raise RejectedError otherwise. Whether the device may renew is the caller's question.
        """
        refusal = RejectedError("renewal-unproved", "the old certificate does not prove the device")
        if len(certificate_pem) > CSR_LIMIT or len(signature) > 256:
            raise refusal
        try:
            old = x509.load_pem_x509_certificate(certificate_pem.encode())
            old.verify_directly_issued_by(self._certificate)
            public = old.public_key()
            if not isinstance(public, ec.EllipticCurvePublicKey):
                raise refusal
            message = renewal_message(csr_pem, unix_time_s)
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            (name,) = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            usage = old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (
            ValueError,
            TypeError,
            InvalidSignature,
            UnsupportedAlgorithm,
            x509.ExtensionNotFound,
        ) as error:
            raise refusal from error
        if list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
            raise refusal
        device = DeviceId(str(name.value))
        return device, f"{old.serial_number:x}", old.not_valid_after_utc.timestamp()

    def _leaf(
        self, name: str, public: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )

    def _still_good(self, made: ServerCredentials, names: list[x509.GeneralName]) -> bool:
        """Return whether the server certificate fits its key, these names and our time."""
        try:
            certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
            key = serialization.load_pem_private_key(made.key.read_bytes(), None)
            certificate.verify_directly_issued_by(self._certificate)
            held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        fits = isinstance(key, ec.EllipticCurvePrivateKey) and (
            key.public_key() == certificate.public_key()
        )
        return fits and list(held.value) == names and left > SERVER_LIFE / 3


def device_name(name: str) -> DeviceId:
    """Return `name` as a device id, or raise RejectedError."""
    if not re.fullmatch(DEVICE_ID_PATTERN, name) or name.lower() == COORDINATOR:
        raise RejectedError(
            "device-name",
            f"{name[:80]!r} cannot name a device: use 1 to 64 letters, digits, '-' and '_'",
        )
    return DeviceId(name)


def _make_authority(folder: Path) -> None:
    """Make what is missing of keys and certificate; ca.pem comes last.

    Keys that are there are kept: a first start that was cut short goes on, and a lost ca.pem is
    made again with the same name and key, so that devices that hold the old one still trust us.
    """
    if not (folder / "ca.key").exists():
        write_private(folder / "ca.key", private_pem(ec.generate_private_key(ec.SECP256R1())))
    if not (folder / "bundle.key").exists():
        signer = ed25519.Ed25519PrivateKey.generate()
        write_private(folder / "bundle.key", private_pem(signer))
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder}/ca.key is not an elliptic-curve key", hint="move it away")
    begin = datetime.now(UTC) - BACKDATED
    name = named(f"Skerry authority {key_fingerprint(key.public_key())[:16]}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
