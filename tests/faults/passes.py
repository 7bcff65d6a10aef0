"""Passes that do not count: used up, of others, old or revoked; apps of others; rows 13, 17.

A pass that is refused is refused by the real listener: gRPC's own TLS, or mosquitto's.
"""

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skerry_cloud.identity import Authority
from skerry_devices.client import at
from skerry_devices.waiting import until
from skerry_edge.enrolment import join
from skerry_edge.identity import Identity, load_key, new_csr
from skerry_edge.links import Credentials
from skerry_protos.errors import RefusalCode, SkerryError
from skerry_protos.messages import DeviceId

from tests.faults.mallory import Mallory
from tests.faults.table import Tally, row
from tests.faults.world import World

CUT_S = 5.0
"""A revoked device's session ends within so long."""
DENIED_S = 6.0
"""How long a pass that must not let anybody in is tried."""
DAY_S = 86_400.0
TOKENS = 50


def issued(world: World, mallory: Mallory, *, by: Path, as_: str, at_s: float) -> Credentials:
    """Return credentials for Mallory's key, by an authority, for a name, as of a time."""
    made = Identity.load(mallory.home).credentials
    csr = new_csr(load_key(made.key), as_)
    pem = Authority.open(by).issue(DeviceId(as_), csr, at_s).pem
    path = world.home / f"{mallory.name}-{as_}-{int(at_s)}-{by.name}.pem"
    path.write_text(pem)
    return Credentials(ca=made.ca, certificate=path, key=made.key)


def denied(tally: Tally, mallory: Mallory, what: str, code: str = "", **other: Any) -> None:
    """Try a pass for a while: it must never let anybody in, and be refused by `code` if so said."""
    mallory.leave()
    before = len(mallory.refusals)
    mallory.connect(wait=False, **other)
    ends = time.monotonic() + DENIED_S
    while time.monotonic() < ends and not mallory.states:
        if mallory.link.connected:
            break
        time.sleep(0.02)
    came = mallory.link.connected or None in mallory.states
    tally.require(not came, f"{mallory.name} came in with {what}")
    codes = [one.code for one in mallory.refusals[before:]]
    if code and codes:
        tally.require(codes[0] == code, f"{what} was refused as {codes[0]}, not {code}")
    tally.trials += 1
    mallory.leave()


@row(17, "passes that do not count", full=20)
def passes(tally: Tally, world: World) -> None:
    """Try certificates of others, of old and after revocation, beside a run that goes on."""
    clean = world.clean(rounds=2)
    elsewhere = world.home / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    number = 0
    while tally.trials < tally.count:
        number += 1
        trip = world.begin(rounds=2, run_config={"train_s": 0.5})
        honest = world.boats[0].name
        with Mallory(world, f"mallory-{number}", connect=False) as mallory:
            now = time.time()

            def made(
                by: Path = world.cloud,
                as_: str = mallory.name,
                at_s: float = now,
                who: Mallory = mallory,
            ) -> Credentials:
                return issued(world, who, by=by, as_=as_, at_s=at_s)

            denied(tally, mallory, "another authority's", credentials=made(by=elsewhere))
            denied(tally, mallory, "an expired one", credentials=made(at_s=now - 30 * DAY_S))
            denied(tally, mallory, "one of the future", credentials=made(at_s=now + DAY_S))
            denied(
                tally,
                mallory,
                f"its own under the name {honest}",
                RefusalCode.IDENTITY,
                device=DeviceId(honest),
            )
            older = made()
            mallory.connect(credentials=older)
            tally.require(mallory.link.connected, "an honest certificate was not let in")
            tally.recovered(_revoke(world, mallory), CUT_S, "the end of a revoked session")
            denied(tally, mallory, "its revoked one", RefusalCode.REVOKED, credentials=older)
            denied(tally, mallory, "a younger one of the revoked device", credentials=made())
        trip.end()
        world.wait_online()
        tally.judge(trip, clean, bytes_limit=0.0)


def _revoke(world: World, mallory: Mallory) -> float:
    """Revoke a device that is connected; return how long it took until it was cut."""
    world.wait_here(mallory.name)
    began = time.monotonic()
    with world.client() as client:
        client.post(at("devices", mallory.name, "revoke"), {"why": "stolen"})
    mallory.wait(lambda: not mallory.link.connected, "its session is cut")
    return time.monotonic() - began


@row(13, "apps changed on a device's disk", full=10)
def changed_apps(tally: Tally, world: World) -> None:
    """Change an app's code where a device has unpacked it: it is fetched again, never run."""
    clean = world.clean()
    boat = world.boats[0]
    while tally.trials < tally.count:
        world.kill_agents(boat, number=signal.SIGTERM)
        codes = list(boat.home.rglob("files/ledger.py"))
        assert codes, f"{boat.home} has no unpacked app"
        for code in codes:
            code.chmod(0o600)
            code.write_text(code.read_text() + "\nraise SystemExit('changed')\n")
        world.start_agents(boat)
        world.wait_online(boat)
        trip = world.begin()
        trip.end()
        tally.trials += 1
        tally.judge(trip, clean)


@row(13, "apps signed by another key", full=10)
def strange_apps(tally: Tally, world: World) -> None:
    """Have a device trust another key than the apps' are signed by: it refuses, and says why."""
    clean = world.clean()
    boat = world.boats[0]
    key = boat.home / "identity" / "bundle.pem"
    honest = key.read_text()
    elsewhere = world.home / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    while tally.trials < tally.count:
        world.kill_agents(boat, number=signal.SIGTERM)
        key.write_text(Authority.open(elsewhere).bundle_key_pem)
        shutil.rmtree(boat.home / "apps")  # what was verified with the right key
        try:
            world.start_agents(boat)
            world.wait_online(boat)
            trip = world.begin(round_deadline_s=20)
            trip.end()
        finally:
            world.kill_agents(boat, number=signal.SIGTERM)
            key.write_text(honest)
            world.start_agents(boat)
            world.wait_online(boat)
        tally.trials += 1
        said = {one["device"]: one["data"]["why"] for one in trip.events("failure")}
        why = said.get(boat.name, "nothing")
        tally.require("sign" in why, f"{trip.id}: {boat.name} is said to have failed by: {why}")
        tally.require(not trip.has(boat.name, "begin"), f"{boat.name} ran what it must not trust")
        tally.judge(trip, everybody=False)
        again = world.begin()
        again.end()
        tally.judge(again, clean)


@row(17, "token used 50 times", full=20, links=("grpc",))
def tokens(tally: Tally, world: World) -> None:
    """Have 50 devices join at once with a token for one: one joins; it is no good afterwards."""
    number = 0
    while tally.trials < tally.count:
        number += 1
        word = _invited(world)
        homes = [world.home / "joining" / f"t{number}-{place}" for place in range(TOKENS)]
        with ThreadPoolExecutor(8) as pool:
            joined = list(pool.map(lambda home, word=word: _joins(word, home), homes))
        tally.require(sum(joined) == 1, f"{sum(joined)} devices joined with a token for one")
        tally.require(not _joins(word, world.home / "joining" / f"t{number}-late"), "used again")
        tally.trials += 1


def _invited(world: World) -> str:
    """Return a token for one, as soon as the coordinator hears this address again."""

    def invited() -> str | None:
        with world.client() as client:
            try:
                return str(client.post(at("invites"), {"uses": 1})["token"])
            except SkerryError as error:
                if "too many refused" not in error.message:
                    raise
                return None

    return until(invited, timeout_s=90, what="an invite", every_s=1.0)


def _joins(word: str, home: Path) -> bool:
    try:
        join(word, home, name=home.name)
    except SkerryError:
        return False
    return True
