"""The parts of X.509 that the authority is made of: requests, names, keys, usages."""

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from skerry_protos.errors import RejectedError
from skerry_protos.tokens import CSR_LIMIT


def key_fingerprint(public: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key, hexadecimal."""
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > CSR_LIMIT:
        raise RejectedError("csr", f"the certificate request is larger than {CSR_LIMIT} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        public = csr.public_key()
        proved = isinstance(public, ec.EllipticCurvePublicKey) and csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RejectedError("csr", "the certificate request is damaged") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        raise RejectedError("csr", "the certificate request's key must be P-256 or P-384")
    if not proved:
        raise RejectedError("csr", "the certificate request's signature is wrong")
    return public


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def server_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """Return the names clients may call us by: loopback, this machine's, and `hosts`."""
    wanted = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts]
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(wanted):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host):
                names.append(x509.DNSName(host))
        else:
            if not address.is_unspecified:
                names.append(x509.IPAddress(address))
    return names
