"""`skerry keys`: the offline keys that models are signed with; they stay on this machine."""

from typing import Annotated

import typer
from skerry_protos.errors import ConfigError

from skerry_devices.cli import group
from skerry_devices.output import Column, Format, Output, ahead, done, show_list
from skerry_devices.signing import Folder, PasswordFile

app = group("Make, use and rotate the offline keys that models are signed with.")

COLUMNS = (
    Column("role", lambda r: str(r["role"])),
    Column("version", lambda r: str(r["version"])),
    Column("keys", lambda r: f"{r['threshold']} of {len(r['keys'])}"),
    Column("files", lambda r: str(r["targets"] or "-")),
    Column("expires", lambda r: ahead(r["expires_at"])),
    Column("waits", lambda r: "for signatures" if r["draft"] else "-"),
)

Role = Annotated[
    str, typer.Argument(metavar="ROLE", help="root, targets, stable, canary, apps or online.")
]


@app.command("list")
def list_roles(output: Output = Format.TABLE) -> None:
    """List the roles: how many keys sign, until when it holds, what waits for signatures."""
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("repository"))
    show_list(found["roles"], COLUMNS, output, empty="No keys yet. Make them: skerry keys init")


@app.command("init")
def init(
    keys: Folder = None,
    password_file: PasswordFile = None,
    count: Annotated[int, typer.Option(min=1, help="Keys of root, and of targets.")] = 3,
    threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign.")] = 2,
    channel_keys: Annotated[int, typer.Option(min=1, help="Keys of each channel.")] = 1,
    channel_threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign.")] = 1,
    output: Output = Format.TABLE,
) -> None:
    """Make all offline keys here and the repository's first metadata; once for a fleet."""
    from skerry_cloud.models import ceremonies, signing
    from skerry_cloud.models.ceremonies import Thresholds

    from skerry_devices.client import at, connect
    from skerry_devices.signing import (
        PINNED,
        fingerprint,
        folder_of,
        offer,
        online_keys,
        password_of,
        pin,
    )

    if threshold > count or channel_threshold > channel_keys:
        raise ConfigError("a threshold above the number of keys can never be met")
    folder = folder_of(keys)
    with connect() as client:
        found = client.get(at("repository"))
        if found["initialised"]:
            raise ConfigError(
                "the models' repository has keys already", hint="skerry keys rotate ROLE"
            )
        password = password_of(password_file, new=True)
        held = signing.load_keys(folder, signing.OFFLINE, password)
        have = {role: sum(each.role == role for each in held) for role in signing.OFFLINE}
        wanted = {"root": count, "targets": count, "stable": channel_keys, "canary": channel_keys}
        missing = {role: wanted[role] - have[role] for role in wanted if have[role] < wanted[role]}
        held += signing.make_keys(folder, missing, password)
        thresholds = Thresholds(
            root=threshold, targets=threshold, stable=channel_threshold, canary=channel_threshold
        )
        made = ceremonies.begin(held, online_keys(found["online"]), thresholds)
        offer(client, made)
        pin(folder, made["root"])
    mark = fingerprint(made["root"])
    done(
        {"folder": str(folder), "root_sha256": mark, "keys": [str(each.path) for each in held]},
        f"{len(held)} keys in {folder}; the trusted root is {folder / PINNED}\n"
        f'devices that must trust nothing else: models.root_sha256 = "{mark}" in agent.toml\n'
        "move the root and targets keys to where no network is, each to another place",
        output,
    )


@app.command("rotate")
def rotate(
    role: Role,
    keys: Folder = None,
    password_file: PasswordFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Put new keys in the place of a role's; online: the coordinator's own.

    The first time for apps, a key here takes the place of the coordinator's: from then on an app is
    signed by `skerry apps sign`, and what was signed before counts no more.
    """
    from skerry_cloud.models import ceremonies, signing

    from skerry_devices.client import at, connect
    from skerry_devices.signing import (
        folder_of,
        offer,
        online_keys,
        password_of,
        set_aside,
        verified,
    )

    if role not in {*signing.KEPT_IN_FILES, "online"}:
        raise ConfigError(
            f"there is no role {role!r}", hint="root, targets, stable, canary, apps, online"
        )
    folder, password = folder_of(keys), password_of(password_file)
    with connect() as client:
        known = verified(client, folder)
        held = signing.load_keys(folder, ("root", "targets", role), password)
        old = [each for each in held if each.role == role]
        fresh, online = [], None
        found = client.get(at("repository"))
        signing_apps = known.client._trusted_set.targets.delegations.roles["apps"].keyids
        if role == "online":
            online = online_keys(client.post(at("repository", "next-keys")))
        elif role == "apps":
            fresh = signing.make_keys(folder, {role: 1}, password)
        else:
            rights = next(r for r in found["roles"] if r["role"] == role)
            fresh = signing.make_keys(folder, {role: len(rights["keys"])}, password)
        with client.download(at("repository", "files", "director-root")) as answer:
            director = answer.read()
        made = ceremonies.rotate(
            role,
            root=known.role("root"),
            director_root=director,
            targets=known.role("targets"),
            channels={
                name: known.role(name) for name in ("stable", "canary", "apps") if known.has(name)
            },
            held=held,
            fresh=fresh,
            online=online,
            apps_offline=found["online"]["apps"]["keyid"] not in signing_apps,
        )
        lacking = offer(client, made)
    set_aside(folder, (each.path for each in old))
    said = f"{role} has new keys" if not lacking else "\n".join(lacking)
    done({"role": role, "waits": lacking, "keys": [str(k.path) for k in fresh]}, said, output)


@app.command("sign")
def sign(
    role: Role,
    keys: Folder = None,
    password_file: PasswordFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Add this machine's signatures to metadata that waits for more of them."""
    from skerry_cloud.models import ceremonies, signing

    from skerry_devices.client import at, connect
    from skerry_devices.signing import folder_of, offer, password_of

    signer = "root" if role == "director-root" else role
    held = signing.load_keys(folder_of(keys), [signer], password_of(password_file))
    with connect() as client:
        with client.download(at("repository", "files", role) + "?draft=true") as answer:
            draft = answer.read()
        lacking = offer(client, ceremonies.add_signature(role, draft, held))
    said = "\n".join(lacking) or f"{role} is signed by enough keys and counts now"
    done({"role": role, "waits": lacking}, said, output)
