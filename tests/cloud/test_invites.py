"""Enrolment under contention: an invite admits as many as it was made for, and nobody else."""

import asyncio
import time
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from skerry_cloud.identity import Authority
from skerry_cloud.store import Store, devices, invites
from skerry_protos.errors import RejectedError
from skerry_protos.messages import DeviceId


def csr() -> str:
    """Return a request for a new key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


class Gatehouse:
    """A store with one invite, and devices at the gate."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self.store, self.authority = store, authority
        self.invite = self.secret = ""

    async def open(self, uses: int, labels: dict[str, str] | None = None) -> None:
        made, self.secret = await self.store.write(
            lambda c: invites.create(c, uses=uses, life_s=60, labels=labels or {}, operator="test")
        )
        self.invite = made.id

    async def enrol(self, name: str, request: str = "", store: Store | None = None) -> str:
        """Return the certificate, or the code of the refusal."""
        request = request or csr()
        device = DeviceId(name)
        asked = devices.Enrolment(
            invite=self.invite, secret=self.secret, name=device, profile="", agent_version=""
        )
        try:
            _, issued = await (store or self.store).write(
                lambda c: devices.enrol(
                    c, asked, lambda: self.authority.issue(device, request, time.time())
                )
            )
        except RejectedError as error:
            return error.code
        return issued.pem


@pytest.fixture
def gate(store: Store, tmp_path: Path) -> Gatehouse:
    """Return a gatehouse on each kind of database."""
    return Gatehouse(store, Authority.open(tmp_path))


async def test_fifty_devices_on_a_five_use_token_are_exactly_five(gate: Gatehouse) -> None:
    await gate.open(uses=5)
    answers = await asyncio.gather(*(gate.enrol(f"d{n}") for n in range(50)))
    assert sum(answer.startswith("-----BEGIN") for answer in answers) == 5
    assert answers.count("token-used") == 45
    assert len(await gate.store.read(devices.listed)) == 5


async def test_fifty_devices_at_coordinators_that_share_a_database_are_exactly_five(
    gate: Gatehouse, database: str
) -> None:
    await gate.open(uses=5)
    answers: list[str] = []

    async def coordinator(first: int) -> None:
        async with Store.open(database) as store:
            answers.extend(
                await asyncio.gather(
                    *(gate.enrol(f"d{n}", store=store) for n in range(first, first + 10))
                )
            )

    threads = [Thread(target=asyncio.run, args=(coordinator(n * 10),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    assert len(answers) == 50
    assert sum(answer.startswith("-----BEGIN") for answer in answers) == 5
    assert len(await gate.store.read(devices.listed)) == 5


async def test_fifty_devices_under_one_name_are_one(gate: Gatehouse) -> None:
    await gate.open(uses=50)
    answers = await asyncio.gather(*(gate.enrol("the-one") for _ in range(50)))
    assert answers.count("device-taken") == 49
    (invite,) = await gate.store.read(invites.listed)
    assert invite.uses_left == 49


async def test_the_same_key_may_ask_again_but_not_by_another_invite_or_after_revocation(
    gate: Gatehouse,
) -> None:
    await gate.open(uses=1, labels={"site": "north"})
    request = csr()
    first = await gate.enrol("pi-1", request)
    second = await gate.enrol("pi-1", request)
    assert second.startswith("-----BEGIN")
    assert first != second
    (device,) = await gate.store.read(devices.listed)
    assert device.labels == {"site": "north"}
    await gate.store.write(lambda c: devices.change(c, device.id, revoked_at=1.0))
    assert await gate.enrol("pi-1", request) == "revoked"
    await gate.open(uses=1)
    assert await gate.enrol("pi-1", request) == "device-taken"


async def test_the_store_knows_no_secret(gate: Gatehouse) -> None:
    await gate.open(uses=1)
    rows = await gate.store.read(
        lambda c: c.exec_driver_sql("SELECT * FROM invite").mappings().all()
    )
    assert gate.secret not in str(rows)
    assert invites.hash_secret(gate.secret) in str(rows)
