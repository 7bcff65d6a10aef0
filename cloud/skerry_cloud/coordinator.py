"""The coordinator: every part started in order, ready together, and stopped the other way round.

`running` is the story; each part is opened by what comes before it and closed after what came
later. State is on disk before anything is acknowledged, so that a kill at any moment loses nothing.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from skerry_protos import tracing
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import ConfigError

from skerry_cloud.brokers import Broker, BrokerConfig, open_broker
from skerry_cloud.config import CoordinatorConfig, url_host
from skerry_cloud.files import write_private
from skerry_cloud.fleets import Fleet
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.fleets.joined import JoinedFleet
from skerry_cloud.fleets.mqtt import MqttFleet
from skerry_cloud.identity import Authority, ServerCredentials
from skerry_cloud.models.answers import Answers
from skerry_cloud.models.apps import SignedApps
from skerry_cloud.models.online import OnlineKeys
from skerry_cloud.models.registry import Models
from skerry_cloud.models.repository import Repository
from skerry_cloud.models.updates import Updates
from skerry_cloud.policies import Policies
from skerry_cloud.registry import Registry
from skerry_cloud.rollouts.engine import Rollouts
from skerry_cloud.runs import Runs
from skerry_cloud.store import Store, operators
from skerry_cloud.store.operators import Role

log = logging.getLogger(__name__)

START_PATIENCE_S = 10.0
RENEW_SERVER_S = 6 * 3600.0
"""How often the coordinator looks whether its own certificate is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a running coordinator is, as `coordinator.json` says it."""

    http_url: str
    grpc_url: str
    mqtt_url: str
    ca: Path
    admin_token_file: Path


async def serve(config: CoordinatorConfig) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as addresses:
        log.info("ready: %s (home %s)", addresses.http_url, config.home.absolute())
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


@contextlib.asynccontextmanager
async def running(config: CoordinatorConfig) -> AsyncIterator[Addresses]:
    """Run a coordinator while the block runs."""
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with contextlib.AsyncExitStack() as stack:
        tracing.begin("skerry-coordinator")
        stack.push_async_callback(asyncio.to_thread, tracing.end)
        stack.enter_context(only_one(config.home))
        listener = stack.enter_context(listening(config.host, config.http_port))
        authority = Authority.open(config.home, device_life=timedelta(days=config.certificate_days))
        keys = authority.server(config.names)
        store = await stack.enter_async_context(
            await asyncio.to_thread(Store.open, config.database_url)
        )
        token_file = await first_admin(store, config.home)
        blobs = await asyncio.to_thread(open_blobs, config)
        registry = await stack.enter_async_context(
            Registry(store=store, authority=authority, heartbeat_s=config.heartbeat_s)
        )
        broker = await open_for_mqtt(config, stack, keys, registry)
        fleets = make_fleets(config, keys, registry, blobs, broker)
        fleet = JoinedFleet(list(fleets.values()))
        models, updates, rollouts = await open_models(
            config.home, stack, store=store, blobs=blobs, fleet=fleet, registry=registry
        )
        runs = Runs(
            store=store,
            blobs=blobs,
            fleet=fleet,
            roster=registry,
            sign=authority.sign_bundle,
            folder=config.home / "runs",
            hidden=lambda: secrets_in(config.home),
            apps=SignedApps(models.repository),
        )
        policies = Policies(store=store, runs=runs, roster=registry)
        updates.on_report.append(policies.heard)
        answers = await stack.enter_async_context(Answers(models, blobs, config.home / "answers"))
        streams = {answers.kind: answers.serve}
        registry.attach(fleet=fleet, work=runs, serving=updates, streams=streams)
        await stack.enter_async_context(runs)
        for one in fleets.values():
            await stack.enter_async_context(one)
        await stack.enter_async_context(policies)
        http_url = f"https://{url_host(config.reached_by)}:{listener.getsockname()[1]}"
        urls = {kind: config.public(url_of(one, broker)) for kind, one in fleets.items()}
        # Runs go on by now: to read the API's code takes as long as all before.
        await asyncio.to_thread(import_module, "skerry_cloud.api.whole")
        from skerry_cloud.api.whole import serve_api

        context = keys.context()
        await stack.enter_async_context(
            serve_api(
                listener=listener,
                context=context,
                url=http_url,
                links=urls,
                store=store,
                blobs=blobs,
                authority=authority,
                registry=registry,
                runs=runs,
                models=models,
                rollouts=rollouts,
                policies=policies,
            )
        )
        renewing = asyncio.create_task(renew_server(authority, config, context))
        stack.callback(renewing.cancel)
        addresses = Addresses(
            http_url=http_url,
            grpc_url=urls.get("grpc", ""),
            mqtt_url=urls.get("mqtt", ""),
            ca=authority.certificate_file.absolute(),
            admin_token_file=token_file.absolute(),
        )
        stack.enter_context(announced(config.home, addresses))
        yield addresses


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock, or raise ConfigError when another coordinator does."""
    file = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 20).decode(errors="replace").strip() or "?"
            raise ConfigError(
                f"another coordinator (process {holder}) runs in {home}",
                hint="stop it first, or use another --home",
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Hold the API's socket, or raise ConfigError saying why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"the API cannot listen on {host}:{port}: {getattr(error, 'strerror', '') or error}",
            hint="stop what uses the port, or choose another with --http-port (0: any)",
        ) from error
    try:
        yield listener
    finally:
        listener.close()


async def first_admin(store: Store, home: Path) -> Path:
    """Make the operator "admin" on the first start; return the file that holds its token.

    The token is on disk before the database knows its hash: a crash between the two leaves a file
    that the next start writes again.
    """
    file = home / "admin.token"
    if not await store.read(operators.listed):
        token = operators.new_token()
        write_private(file, f"{token}\n".encode())
        await store.write(
            lambda c: operators.keep(c, name="admin", role=Role.ADMIN, token=token),
            patience_s=START_PATIENCE_S,
        )
    return file


def open_blobs(config: CoordinatorConfig) -> LocalBlobs:
    """Return where blobs are kept: the local disk, and an object store if one is named."""
    folder = config.home / "blobs"
    if not config.objects:
        return LocalBlobs(folder)
    from skerry_cloud.store.objects import ObjectBlobs

    return ObjectBlobs(folder, config.objects)


async def open_models(
    home: Path,
    stack: contextlib.AsyncExitStack,
    *,
    store: Store,
    blobs: LocalBlobs,
    fleet: Fleet,
    registry: Registry,
) -> tuple[Models, Updates, Rollouts]:
    """Return the model registry, who tells devices of models, and the rollouts, all open."""
    online = await asyncio.to_thread(OnlineKeys.open, home / "models")
    repository = await stack.enter_async_context(Repository(store, blobs, online))
    models = Models(store=store, blobs=blobs, repository=repository)
    updates = await stack.enter_async_context(
        Updates(store=store, fleet=fleet, roster=registry, repository=repository)
    )
    rollouts = await stack.enter_async_context(
        Rollouts(store=store, models=models, updates=updates, roster=registry)
    )
    return models, updates, rollouts


def secrets_in(home: Path) -> list[Path]:
    """Return what a run's server side must not see: all in the home but runs' files and blobs."""
    return [path for path in home.iterdir() if path.name not in {"runs", "blobs"}]


async def open_for_mqtt(
    config: CoordinatorConfig,
    stack: contextlib.AsyncExitStack,
    keys: ServerCredentials,
    registry: Registry,
) -> Broker | None:
    """Return the broker for devices on MQTT, up, or None when there are none."""
    if "mqtt" not in config.links:
        return None
    return await stack.enter_async_context(
        open_broker(
            BrokerConfig(
                state=config.home / "broker",
                choice=config.broker,
                host=config.host,
                port=config.mqtt_port,
                keys=None if config.insecure else keys,
                denied=registry.revoked(),
            )
        )
    )


def make_fleets(
    config: CoordinatorConfig,
    keys: ServerCredentials,
    registry: Registry,
    blobs: LocalBlobs,
    broker: Broker | None,
) -> dict[str, GrpcFleet | MqttFleet]:
    """Return the transports by name, not open yet."""
    fleets: dict[str, GrpcFleet | MqttFleet] = {}
    if "grpc" in config.links:
        fleets["grpc"] = GrpcFleet(
            gate=registry,
            blobs=blobs,
            host=config.host,
            port=config.grpc_port,
            keys=None if config.insecure else keys,
            heartbeat_s=config.heartbeat_s,
        )
    if broker is not None:
        fleets["mqtt"] = MqttFleet(
            gate=registry, blobs=blobs, broker=broker, heartbeat_s=config.heartbeat_s
        )
    return fleets


def url_of(fleet: GrpcFleet | MqttFleet, broker: Broker | None) -> str:
    """Return where an open transport is."""
    if isinstance(fleet, GrpcFleet):
        return fleet.url
    assert broker is not None
    return broker.url


async def reset_admin(config: CoordinatorConfig) -> Path:
    """Give the operator "admin" a new token while the coordinator is stopped; return its file."""
    with only_one(config.home):
        async with await asyncio.to_thread(Store.open, config.database_url) as store:
            token, file = operators.new_token(), config.home / "admin.token"
            await store.write(lambda c: operators.restore_admin(c, token), patience_s=0.0)
            write_private(file, f"{token}\n".encode())
            return file


async def renew_server(
    authority: Authority, config: CoordinatorConfig, context: ssl.SSLContext
) -> None:
    """Make the coordinator's certificate anew when it is due; new connections see the new one."""
    while True:
        await asyncio.sleep(RENEW_SERVER_S)
        try:
            keys = await asyncio.to_thread(authority.server, config.names)
            context.load_cert_chain(str(keys.certificate), str(keys.key))
        except OSError as error:
            log.error("cannot renew the coordinator's certificate, trying again later: %s", error)


@contextlib.contextmanager
def announced(home: Path, addresses: Addresses) -> Iterator[None]:
    """Say in `coordinator.json` that everything is ready and where."""
    file = home / "coordinator.json"
    fields = {name: str(value) for name, value in asdict(addresses).items()}
    text = json.dumps({"pid": os.getpid(), **fields}, indent=1)
    write_private(file, text.encode())
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
