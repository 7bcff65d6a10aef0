"""The authority: what it issues, and what it refuses to sign."""

import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from skerry_cloud.identity import Authority, device_name
from skerry_protos.errors import ConfigError, RejectedError
from skerry_protos.messages import DeviceId
from skerry_protos.tokens import renewal_message


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return a new authority."""
    return Authority.open(tmp_path)


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | None = None,
    subject: str = "whoever",
) -> bytes:
    """Return a certificate request in PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    return csr.public_bytes(serialization.Encoding.PEM)


def test_a_device_certificate_is_for_seven_days_one_device_and_clients_only(
    authority: Authority,
) -> None:
    issued = authority.issue(DeviceId("pi-1"), request(subject="root").decode(), time.time())
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    (name,) = certificate.subject
    assert (name.oid, name.value) == (NameOID.COMMON_NAME, "pi-1")
    life = certificate.not_valid_after_utc - datetime.now(UTC)
    assert abs(life - timedelta(days=7)) < timedelta(minutes=1)

    def extension(kind: type[x509.ExtensionType]) -> object:
        return certificate.extensions.get_extension_for_class(kind).value

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://skerry/device/pi-1")]
    assert extension(x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    assert extension(x509.BasicConstraints) == x509.BasicConstraints(ca=False, path_length=None)
    assert f"{certificate.serial_number:x}" == issued.serial


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_both_curves_we_take_are_taken(authority: Authority, curve: ec.EllipticCurve) -> None:
    csr = request(ec.generate_private_key(curve)).decode()
    assert authority.issue(DeviceId("pi-1"), csr, time.time()).pem


@pytest.mark.parametrize(
    "csr",
    [
        request(rsa.generate_private_key(65537, 1024)),
        request(rsa.generate_private_key(65537, 2048)),
        request(ed25519.Ed25519PrivateKey.generate()),
        request(ec.generate_private_key(ec.SECP256K1())),
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\nnonsense\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * 100_000,
    ],
    ids=["rsa-1024", "rsa-2048", "ed25519", "secp256k1", "empty", "damaged", "large"],
)
def test_other_keys_and_damaged_requests_are_refused(authority: Authority, csr: bytes) -> None:
    with pytest.raises(RejectedError, match="certificate request") as caught:
        authority.issue(DeviceId("pi-1"), csr.decode(), time.time())
    assert caught.value.code == "csr"


def test_no_request_with_a_flipped_bit_is_signed_for_its_key(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = ssl.PEM_cert_to_DER_cert(
        request(key).decode().replace("CERTIFICATE REQUEST", "CERTIFICATE")
    )
    refused = 0
    for byte in range(len(der)):
        flipped = bytearray(der)
        flipped[byte] ^= 1 << byte % 8
        pem = ssl.DER_cert_to_PEM_cert(bytes(flipped))
        with pytest.raises(RejectedError):
            authority.issue(
                DeviceId("pi-1"),
                pem.replace("CERTIFICATE", "CERTIFICATE REQUEST"),
                time.time(),
            )
        refused += 1
    assert refused == len(der)


@pytest.mark.parametrize(
    "name",
    [
        "../etc",
        "a/b",
        "+",
        "#",
        "skerry-coordinator",
        "Skerry-Coordinator",
        "a" * 65,
        "",
        "a\n",
        "é",
    ],
)
def test_a_name_with_a_meaning_elsewhere_names_no_device(name: str) -> None:
    with pytest.raises(RejectedError):
        device_name(name)


def test_the_authority_stays_the_same_and_its_keys_are_private(tmp_path: Path) -> None:
    first = Authority.open(tmp_path)
    again = Authority.open(tmp_path)
    assert (again.pin, again.bundle_key_pem) == (first.pin, first.bundle_key_pem)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ca").iterdir()} == {0o600}
    public = serialization.load_pem_public_key(first.bundle_key_pem.encode())
    assert isinstance(public, ed25519.Ed25519PublicKey)
    public.verify(again.sign_bundle(b"manifest"), b"manifest")


def test_a_first_start_that_was_cut_short_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    first = Authority.open(tmp_path)
    issued = first.issue(DeviceId("pi-1"), request().decode(), time.time())
    first.certificate_file.unlink()
    again = Authority.open(tmp_path)
    ours = x509.load_pem_x509_certificate(again.certificate_file.read_bytes())
    x509.load_pem_x509_certificate(issued.pem.encode()).verify_directly_issued_by(ours)


def test_an_authority_with_a_lost_or_foreign_key_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    Authority.open(tmp_path / "other")
    key = tmp_path / "ca" / "ca.key"
    key.write_bytes((tmp_path / "other" / "ca" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="do not belong together"):
        Authority.open(tmp_path)
    key.unlink()
    with pytest.raises(ConfigError, match="from a backup"):
        Authority.open(tmp_path)


def test_the_server_certificate_names_the_hosts_and_is_kept_until_it_is_due(
    authority: Authority,
) -> None:
    made = authority.server(["fleet.example.com", "192.0.2.7", "0.0.0.0"])
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "fleet.example.com"} <= set(names.get_values_for_type(x509.DNSName))
    addresses = {str(one) for one in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "::1", "192.0.2.7"}
    before = made.certificate.read_bytes()
    authority.server(["fleet.example.com", "192.0.2.7"])
    assert made.certificate.read_bytes() == before
    authority.server(["other.example.com"])
    assert made.certificate.read_bytes() != before
    made.context()
    made.key.write_bytes(b"torn")
    authority.server(["other.example.com"]).context()


def test_only_the_key_of_a_device_certificate_of_ours_proves_a_renewal(
    authority: Authority, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = request(key).decode()
    issued = authority.issue(DeviceId("pi-1"), csr, time.time())

    def prove(
        certificate: str = issued.pem,
        signer: ec.EllipticCurvePrivateKey = key,
        asked: str = csr,
        at: float = 5.0,
    ) -> str:
        signature = signer.sign(renewal_message(csr, 5.0), ec.ECDSA(hashes.SHA256()))
        return authority.prove_renewal(
            certificate_pem=certificate, csr_pem=asked, unix_time_s=at, signature=signature
        )[0]

    assert prove() == "pi-1"
    stranger = Authority.open(tmp_path / "stranger").issue(DeviceId("pi-1"), csr, time.time())
    server = authority.server([])
    server_key = serialization.load_pem_private_key(server.key.read_bytes(), None)
    assert isinstance(server_key, ec.EllipticCurvePrivateKey)
    wrongs: list[Callable[[], str]] = [
        lambda: prove(signer=ec.generate_private_key(ec.SECP256R1())),
        lambda: prove(asked=request().decode()),
        lambda: prove(at=6.0),
        lambda: prove(certificate=stranger.pem),
        lambda: prove(certificate="nothing"),
        lambda: prove(certificate=server.certificate.read_text(), signer=server_key),
    ]
    for wrong in wrongs:
        with pytest.raises(RejectedError, match="does not prove"):
            wrong()
