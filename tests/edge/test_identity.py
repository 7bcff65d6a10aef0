"""Joining and renewing from the device's side, against a real coordinator's API over TLS."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from skerry_cloud.identity import Authority
from skerry_cloud.store import devices as kept
from skerry_edge import enrolment
from skerry_edge.enrolment import join, renew_expired
from skerry_edge.identity import Identity, leave
from skerry_protos.errors import ConfigError, LinkError, RejectedError, SkerryError, TrustError
from skerry_protos.tokens import JoinToken

from tests.mainland import Mainland, mainland

pytestmark = pytest.mark.network


@pytest.fixture
async def shore(tmp_path: Path) -> AsyncIterator[Mainland]:
    """Run a coordinator's API."""
    async with mainland(tmp_path / "coordinator") as running:
        yield running


async def refused(word: str, home: Path, name: str = "pi-1") -> SkerryError:
    """Return the error that joining ends with."""
    with pytest.raises(SkerryError) as caught:
        await asyncio.to_thread(join, word, home, name)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_a_device_joins_by_a_token_and_keeps_a_private_identity(
    shore: Mainland, tmp_path: Path
) -> None:
    word = await shore.invite(labels={"site": "north"})
    made = await asyncio.to_thread(join, word, tmp_path, "pi-1", "pi4")
    loaded = Identity.load(tmp_path)
    assert loaded == made
    assert (loaded.device, loaded.url) == ("pi-1", shore.url)
    assert loaded.links[0].url == "grpcs://127.0.0.1:8471"
    assert loaded.valid_until - time.time() == pytest.approx(7 * 86400, abs=60)
    assert b"PUBLIC KEY" in loaded.bundle_key_pem
    folder = tmp_path / "identity"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    loaded.credentials.context()  # the key fits the certificate
    device = await shore.registry.device("pi-1")
    assert device is not None
    assert (device.labels, device.profile, device.state) == ({"site": "north"}, "pi4", "offline")


async def test_a_device_without_a_name_is_named_after_its_key(
    shore: Mainland, tmp_path: Path
) -> None:
    made = await asyncio.to_thread(join, await shore.invite(), tmp_path)
    assert made.device.startswith("device-")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hello", "does not begin with 'skj1.'"),
        ("skj1.AAAA", "damaged"),
        ("skj1." + "A" * 5000, "not a join token"),
    ],
)
async def test_what_is_no_token_is_said_to_be_none(word: str, said: str, tmp_path: Path) -> None:
    assert said in str(await refused(word, tmp_path))
    assert not (tmp_path / "identity").exists()


async def test_used_expired_withdrawn_forged_and_unknown_tokens_are_told_apart(
    shore: Mainland, tmp_path: Path
) -> None:
    once = await shore.invite(uses=1)
    await asyncio.to_thread(join, once, tmp_path / "a", "a")
    brief = await shore.invite(expires_s=0.05)
    gone = await shore.invite()
    await shore.call("DELETE", f"/v1/invites/{JoinToken.decode(gone).invite}")
    good = JoinToken.decode(await shore.invite())
    await asyncio.sleep(0.06)
    codes = {
        once: "token-used",
        brief: "token-expired",
        gone: "token-revoked",
        replace(good, secret=good.secret[::-1]).encode(): "token-forged",
        replace(good, invite="0" * 12).encode(): "token-unknown",
    }
    for number, (word, code) in enumerate(codes.items()):
        error = await refused(word, tmp_path / str(number), f"pi-{number}")
        assert isinstance(error, RejectedError)
        assert error.code == code
        assert not (tmp_path / str(number) / "identity" / "identity.json").exists()


async def test_a_join_whose_answer_was_lost_is_repeated_with_the_same_token(
    shore: Mainland, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = await shore.invite(uses=1)

    def cut(*_: object) -> Identity:
        raise LinkError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "_settle", cut)
        assert isinstance(await refused(word, tmp_path), LinkError)
    made = await asyncio.to_thread(join, word, tmp_path, "pi-1")
    assert made.device == "pi-1"
    assert len(await shore.registry.devices()) == 1


async def test_a_coordinator_with_another_authority_is_not_trusted(
    shore: Mainland, tmp_path: Path
) -> None:
    token = JoinToken.decode(await shore.invite())
    other = Authority.open(tmp_path / "other").pin
    error = await refused(replace(token, pin=other).encode(), tmp_path)
    assert isinstance(error, TrustError)
    assert "another certificate authority" in str(error)
    assert not (tmp_path / "identity").exists()


async def test_a_coordinator_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    token = JoinToken(url=f"https://127.0.0.1:{port}", pin="0" * 64, invite="i", secret="s")
    error = await refused(token.encode(), tmp_path)
    assert isinstance(error, LinkError)
    assert f"https://127.0.0.1:{port}" in str(error)


async def test_a_server_that_is_no_coordinator_is_said_to_be_none(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    token = JoinToken(url=f"https://127.0.0.1:{port}", pin="0" * 64, invite="i", secret="s")
    async with server:
        assert isinstance(await refused(token.encode(), tmp_path), LinkError)


@pytest.mark.parametrize("days", [-366, 366])
async def test_a_clock_a_year_off_is_named_with_both_times(
    shore: Mainland, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    word, now = await shore.invite(), time.time()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: now + days * 86400)
    # The coordinator runs in this process: its clock must stay right.
    monkeypatch.setattr("skerry_cloud.api.enrol.time", RightClock(real))
    error = await refused(word, tmp_path)
    assert isinstance(error, TrustError)
    here, there = (time.strftime("%Y-%m-%d", time.gmtime(t)) for t in (now + days * 86400, now))
    assert f"this device's clock says {here}" in str(error)
    assert f"the coordinator's {there}" in str(error)
    assert "set the clock" in str(error)


class RightClock:
    """A module `time` that nobody has set wrong."""

    def __init__(self, real: Callable[[], float]) -> None:
        self.time = real


async def test_a_device_joins_once(shore: Mainland, tmp_path: Path) -> None:
    word = await shore.invite(uses=5)
    await asyncio.to_thread(join, word, tmp_path, "pi-1")
    error = await refused(word, tmp_path, "pi-2")
    assert isinstance(error, ConfigError)
    assert "already joined" in str(error)
    leave(tmp_path)
    assert (await refused(word, tmp_path, "pi-1")).code == "device-taken"
    with pytest.raises(ConfigError, match="has not joined"):
        Identity.load(tmp_path)


async def test_a_name_that_is_no_name_never_leaves_the_device(tmp_path: Path) -> None:
    token = JoinToken(url="https://127.0.0.1:1", pin="0" * 64, invite="i", secret="s")
    for name in ["../up", "a/b", "a+b", "#", "a" * 65, "ä", "a b"]:
        assert isinstance(await refused(token.encode(), tmp_path, name), ConfigError)


async def test_renewal_is_due_at_two_thirds_of_the_certificates_life(
    shore: Mainland, tmp_path: Path
) -> None:
    made = await asyncio.to_thread(join, await shore.invite(), tmp_path, "pi-1")
    life = made.valid_until - made.valid_from
    assert not made.needs_renewal(made.valid_from + life * 0.66)
    assert made.needs_renewal(made.valid_from + life * 0.67)
    assert not made.expired(made.valid_until - 1)
    assert made.expired(made.valid_until)


async def test_a_renewed_certificate_is_installed_and_a_foreign_one_refused(
    shore: Mainland, tmp_path: Path
) -> None:
    made = await asyncio.to_thread(join, await shore.invite(), tmp_path / "a", "a")
    other = await asyncio.to_thread(join, await shore.invite(), tmp_path / "b", "b")
    later = time.time() + 1000
    renewed = made.install(shore.authority.issue(made.device, made.csr(), later).pem)
    assert renewed.valid_until == pytest.approx(made.valid_until + 1000, abs=10)
    assert Identity.load(tmp_path / "a") == renewed
    stranger = Authority.open(tmp_path / "stranger")
    for foreign in [
        stranger.issue(made.device, made.csr(), later).pem,
        shore.authority.issue(other.device, made.csr(), later).pem,
        shore.authority.issue(made.device, other.csr(), later).pem,
        "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n",
    ]:
        with pytest.raises(TrustError):
            renewed.install(foreign)
    assert Identity.load(tmp_path / "a") == renewed
    renewed.credentials.context()


async def test_a_device_that_slept_past_its_certificate_renews_by_its_key(tmp_path: Path) -> None:
    async with mainland(tmp_path / "coordinator", device_life=timedelta(seconds=1)) as shore:
        made = await asyncio.to_thread(join, await shore.invite(), tmp_path, "pi-1")
        await asyncio.sleep(max(0.0, made.valid_until - time.time()) + 0.05)
        assert made.expired(time.time())
        renewed = await asyncio.to_thread(renew_expired, made)
        assert renewed.valid_until > made.valid_until
        stolen = replace(made, folder=tmp_path / "copy" / "identity")
        await asyncio.to_thread(join, await shore.invite(), tmp_path / "copy", "other")
        (stolen.folder / "certificate.pem").write_bytes(
            (made.folder / "certificate.pem").read_bytes()
        )
        with pytest.raises(RejectedError, match="does not prove"):
            await asyncio.to_thread(renew_expired, stolen)
        await shore.registry.revoke(made.device, "stolen")
        with pytest.raises(RejectedError, match="was revoked"):
            await asyncio.to_thread(renew_expired, renewed)


async def test_a_certificate_we_never_gave_renews_nothing(shore: Mainland, tmp_path: Path) -> None:
    made = await asyncio.to_thread(join, await shore.invite(), tmp_path, "pi-1")
    unknown = made.install(shore.authority.issue(made.device, made.csr(), time.time()).pem)
    with pytest.raises(RejectedError, match="not enrolled"):
        await asyncio.to_thread(renew_expired, unknown)
    assert len(await shore.store.read(kept.listed)) == 1


async def test_a_damaged_identity_is_named(shore: Mainland, tmp_path: Path) -> None:
    await asyncio.to_thread(join, await shore.invite(), tmp_path, "pi-1")
    file = tmp_path / "identity" / "identity.json"
    good = json.loads(file.read_text())
    for damaged in ["", "[]", "{}", json.dumps(good | {"links": 3}), json.dumps(good | {"x": 1})]:
        file.write_text(damaged)
        with pytest.raises(ConfigError, match=r"identity\.json"):
            Identity.load(tmp_path)
