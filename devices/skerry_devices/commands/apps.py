"""`skerry apps`: which apps may run on devices that insist on signed ones (docs/rollout.md)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from skerry_protos.errors import ConfigError

from skerry_devices.cli import group
from skerry_devices.output import Column, Format, Output, ago, done, show_list
from skerry_devices.signing import Folder, PasswordFile

if TYPE_CHECKING:
    from skerry_devices.client import Client
    from skerry_devices.signing import Verified

app = group("Sign and withdraw apps for devices that run signed ones only.")

COLUMNS = (
    Column("app", lambda a: str(a["name"])),
    Column("version", lambda a: str(a["version"])),
    Column("kind", lambda a: str(a["kind"])),
    Column("signed", lambda a: ago(a["at"]) if a["at"] else "-"),
    Column("manifest", lambda a: str(a["digest"])[:16]),
)
HINT = "the coordinator signs every app itself; take that over with: skerry keys rotate apps"


@app.command("list")
def list_apps(keys: Folder = None, output: Output = Format.TABLE) -> None:
    """List the apps that are signed, as verified by the root that is pinned here."""
    from skerry_devices.client import connect
    from skerry_devices.signing import folder_of, verified

    with connect() as client:
        found = _signed(verified(client, folder_of(keys)))
    items = sorted(found, key=lambda each: (each["name"], -each["at"]))
    show_list(items, COLUMNS, output, empty="No app is signed.")


@app.command("sign")
def sign_app(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="The app's folder.")],
    keys: Folder = None,
    password_file: PasswordFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Sign an app as it is in its folder here, with the key on this machine."""
    from skerry_cloud.models.apps import app_target
    from skerry_protos import bundles

    from skerry_devices.apps import read_app
    from skerry_devices.client import connect

    manifest = bundles.inspect(read_app(folder).bundle)
    target = app_target(manifest)
    with connect() as client:
        lacking = _offer(client, keys, password_file, {target.path: target}, [])
    said = "\n".join(lacking) or f"{manifest.name} is signed: {target.path}"
    done({"app": manifest.name, "path": target.path, "waits": lacking}, said, output)


@app.command("withdraw")
def withdraw_app(
    name: Annotated[
        str, typer.Argument(metavar="APP", help="Its name, or the beginning of its manifest.")
    ],
    keys: Folder = None,
    password_file: PasswordFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Let an app run no more on devices that insist; all versions of it by its name."""
    from skerry_devices.client import connect
    from skerry_devices.signing import folder_of, verified

    with connect() as client:
        found = [
            each
            for each in _signed(verified(client, folder_of(keys)))
            if each["name"] == name or (len(name) >= 8 and each["digest"].startswith(name))
        ]
        if not found:
            raise ConfigError(f"no app {name[:80]!r} is signed", hint="skerry apps list")
        lacking = _offer(client, keys, password_file, {}, [each["path"] for each in found])
    said = "\n".join(lacking) or f"{len(found)} versions of {name} are withdrawn"
    done({"apps": [each["path"] for each in found], "waits": lacking}, said, output)


def _offer(
    client: "Client",
    keys: Path | None,
    password_file: Path | None,
    add: dict[str, Any],
    drop: list[str],
) -> list[str]:
    """Sign the next metadata of apps and send it; return what still lacks signatures."""
    from skerry_cloud.models import ceremonies, signing
    from skerry_protos.artefacts import APPS

    from skerry_devices.signing import folder_of, offer, password_of, verified

    folder = folder_of(keys)
    known = verified(client, folder)
    held = signing.load_keys(folder, [APPS], password_of(password_file))
    may = set(known.client._trusted_set.targets.delegations.roles[APPS].keyids)
    if not any(each.keyid in may for each in held):
        raise ConfigError(f"no key of the role apps is in {folder}", hint=HINT)
    current = known.role(APPS) if known.has(APPS) else b""
    return offer(client, ceremonies.sign_targets(APPS, current, add, held, drop=drop))


def _signed(known: "Verified") -> list[dict[str, Any]]:
    from skerry_cloud.models.signing import read
    from skerry_protos.artefacts import APPS
    from tuf.api.metadata import Targets

    if not known.has(APPS):
        return []
    found = []
    for path, target in read(known.role(APPS), Targets).signed.targets.items():
        custom = target.custom or {}
        found.append(
            {
                "path": path,
                "digest": target.hashes["sha256"],
                "name": str(custom.get("name", "")),
                "version": str(custom.get("version", "")),
                "kind": str(custom.get("kind", "")),
                "at": int(custom.get("at", 0)),
            }
        )
    return found
