"""Routes that devices use before they have a link: the CA, joining, and renewing after expiry.

Nobody is logged in here: a join token or an old certificate's key is the proof. `Guard` limits how
often an address may ask, and more so once it was refused.
"""

import base64
import binascii
import time
from collections.abc import Sequence

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from skerry_protos.errors import RejectedError
from skerry_protos.tokens import CLOCK_TOLERANCE_S, CSR_LIMIT, RENEW_GRACE_S

from skerry_cloud.api.auth import note
from skerry_cloud.identity import Authority, device_name
from skerry_cloud.store import Store
from skerry_cloud.store import devices as kept

VERSION_PATTERN = r"^[ -~]{0,64}$"


class LinkView(BaseModel):
    """One way for devices to connect."""

    kind: str
    url: str


class CaView(BaseModel):
    """The authority that devices and operators trust, and our clock."""

    ca_pem: str
    pin: str
    unix_time_s: float


class Join(BaseModel):
    """A join token's invite and secret, and a request signed by the device's own key."""

    model_config = ConfigDict(extra="forbid")
    invite: str = Field(max_length=32)
    secret: str = Field(max_length=100)
    csr_pem: str = Field(max_length=CSR_LIMIT)
    name: str = Field("", max_length=200, description="Empty: named after its key.")
    profile: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    agent_version: str = Field("", pattern=VERSION_PATTERN)


class Joined(BaseModel):
    """Who the device is now, and how to reach the fleet."""

    device: str
    node: int
    certificate_pem: str
    ca_pem: str
    links: list[LinkView]
    bundle_key_pem: str
    heartbeat_s: float


class Renewal(BaseModel):
    """An old certificate, a new request, and a signature over it by the old certificate's key."""

    model_config = ConfigDict(extra="forbid")
    certificate_pem: str = Field(max_length=CSR_LIMIT)
    csr_pem: str = Field(max_length=CSR_LIMIT)
    unix_time_s: float = Field(allow_inf_nan=False)
    signature: str = Field(max_length=400, description="Base64, ECDSA with SHA-256.")


class Renewed(BaseModel):
    """The new certificate."""

    certificate_pem: str


def router(
    store: Store, authority: Authority, *, links: Sequence[LinkView], heartbeat_s: float
) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["enrolment"])

    @routes.get("/ca")
    async def read_ca() -> CaView:
        """Read the authority's certificate; a join token says which one to expect."""
        return CaView(ca_pem=authority.certificate_pem, pin=authority.pin, unix_time_s=time.time())

    @routes.post("/enrol")
    async def enrol_device(asked: Join, request: Request) -> Joined:
        """Trade a join token for a certificate."""
        note(request, invite=asked.invite, name=asked.name, profile=asked.profile)
        key = authority.requested(asked.csr_pem)
        name = device_name(asked.name or f"device-{key[:10]}")
        note(request, device=name)
        enrolment = kept.Enrolment(
            invite=asked.invite,
            secret=asked.secret,
            name=name,
            profile=asked.profile,
            agent_version=asked.agent_version,
        )
        device, issued = await store.write(
            lambda c: kept.enrol(
                c, enrolment, lambda: authority.issue(name, asked.csr_pem, time.time())
            ),
            patience_s=5.0,
        )
        return Joined(
            device=device.id,
            node=device.node,
            certificate_pem=issued.pem,
            ca_pem=authority.certificate_pem,
            links=list(links),
            bundle_key_pem=authority.bundle_key_pem,
            heartbeat_s=heartbeat_s,
        )

    @routes.post("/renew")
    async def renew_certificate(asked: Renewal, request: Request) -> Renewed:
        """Trade an expired certificate for a new one, by its key, for 90 days after its end."""
        now = time.time()
        if abs(asked.unix_time_s - now) > CLOCK_TOLERANCE_S:
            raise RejectedError(
                "clock", f"the device's clock is {abs(asked.unix_time_s - now):.0f} s off: set it"
            )
        try:
            signature = base64.b64decode(asked.signature, validate=True)
        except binascii.Error as error:
            raise RejectedError("renewal-unproved", "the signature is not base64") from error
        name, serial, end = authority.prove_renewal(
            certificate_pem=asked.certificate_pem,
            csr_pem=asked.csr_pem,
            unix_time_s=asked.unix_time_s,
            signature=signature,
        )
        note(request, device=name)
        if now > end + RENEW_GRACE_S:
            raise RejectedError(
                "token-expired", "the certificate ended over 90 days ago: join again by a new token"
            )
        issued = authority.issue(name, asked.csr_pem, now)
        await store.write(lambda c: kept.renew(c, name, serial, issued), patience_s=5.0)
        return Renewed(certificate_pem=issued.pem)

    return routes
