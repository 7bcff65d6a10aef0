"""Certificates for tests, from the coordinator's real authority."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from skerry_cloud.identity import Authority, ServerCredentials
from skerry_protos.messages import DeviceId


@dataclass(frozen=True, slots=True)
class DeviceFiles:
    """PEM files of one device."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a client context that presents the device's certificate."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


class Trust:
    """An authority of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority.open(folder)
        self.server: ServerCredentials = self._authority.server(["localhost", "127.0.0.1"])

    def device(self, name: str) -> DeviceFiles:
        """Return a device's files, made at the first call."""
        files = DeviceFiles(
            self.server.ca, self._folder / f"{name}.pem", self._folder / f"{name}.key"
        )
        if not files.key.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            pem = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
            issued = self._authority.issue(DeviceId(name), pem.decode(), time.time())
            files.certificate.write_text(issued.pem)
            files.key.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
        return files
