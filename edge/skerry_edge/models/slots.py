"""Two slots for each model: one serves, the other takes the next release or keeps the last good.

`live` is a symbolic link to slot `a` or `b`; changing it is the one step that swaps. What a swap
means (a trial, what was bad) is in a ledger file elsewhere, written before the link, so that a kill
between any two steps is mended by `recover`, also when the slots' disk is wiped.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skerry_protos.disk import explained
from skerry_protos.errors import SkerryError, TrustError
from skerry_protos.messages import Digest

from skerry_edge.models.files import place, point, read_json, remove_link, sync, write_json

ARTEFACT = "artefact"
"""The artefact's file in a slot, as it was signed; what it holds is unpacked beside it."""
CONTENT = "content"
_ABOUT = "slot.json"
_LIVE = "live"
_NAMES = ("a", "b")
GOOD_LIMIT = 8
BAD_LIMIT = 200
"""Digests remembered as bad; the oldest are forgotten."""

Unpack = Callable[[Path, Path], object]
"""Write an artefact's files below an empty folder, or raise TrustError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What was assigned and signed: one artefact of a model's version."""

    model: str
    version: int
    target: str  # its path in the models' repository
    digest: Digest
    size: int
    rollout: str = ""
    custom: Mapping[str, Any] = field(default_factory=dict)  # what its signer says of it
    wish: Mapping[str, Any] = field(default_factory=dict)  # what the director says: trial, gates


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot that holds a release."""

    name: str
    folder: Path
    release: Release

    @property
    def artefact(self) -> Path:
        """The signed file."""
        return self.folder / ARTEFACT

    @property
    def content(self) -> Path:
        """The folder of what the artefact holds."""
        return self.folder / CONTENT


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What outlives the slots: whether a trial is on, what was good, and what was bad."""

    trial: str = ""  # digest of the release on trial
    before: str = ""  # digest of the release that served before the trial; empty: none did
    starts: int = 0  # how often the agent has started during the trial
    good: list[str] = field(default_factory=list)  # digests that were found healthy, newest last
    bad: dict[str, str] = field(default_factory=dict)  # digest -> why


class Slots:
    """One model's slots under `root`, with the ledger's file outside what may be wiped."""

    def __init__(
        self,
        root: Path,
        ledger: Path,
        *,
        unpack: Unpack | None = None,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.root, self._file = root, ledger
        self._unpack, self._step = unpack, on_step
        with explained(root, "make the slots"):
            root.mkdir(parents=True, exist_ok=True)
            ledger.parent.mkdir(parents=True, exist_ok=True)
        self.ledger = _ledger(read_json(ledger))

    # What is there.

    @property
    def live(self) -> Slot | None:
        """The slot that serves, or None."""
        return self._slot(self._live_name())

    @property
    def idle(self) -> Slot | None:
        """The other slot's release, or None when it is empty."""
        return self._slot(self._idle_name())

    @property
    def on_trial(self) -> bool:
        """Whether the live release has yet to be found healthy."""
        live = self.live
        return live is not None and self.ledger.trial == live.release.digest

    def why_bad(self, digest: str) -> str | None:
        """Return why a release was found bad on this device, or None."""
        return self.ledger.bad.get(digest)

    def kept(self, digest: str) -> bool:
        """Return whether the idle slot holds this release, whole and found healthy before."""
        idle = self.idle
        return (
            idle is not None
            and idle.release.digest == digest
            and digest in self.ledger.good
            and not self.why_bad(digest)
            and intact(idle)
        )

    # Changing it.

    def restate(self, release: Release) -> None:
        """Say anew what the live slot holds: the same bytes under another name or wish."""
        live = self.live
        if live is not None and live.release.digest == release.digest:
            write_json(live.folder / _ABOUT, asdict(release))

    def recover(self) -> str | None:
        """Mend what a crash or a bad disk left; return what was done, or None.

        A trial that was noted but whose swap did not happen is off; a live release whose bytes
        are damaged gives way to the other slot's, if those are right.
        """
        for left in self.root.glob("new-*"):
            shutil.rmtree(left, ignore_errors=True)
        live, said = self.live, None
        if live is not None and not intact(live):
            other = self.idle
            keep = other is not None and intact(other) and not self.why_bad(other.release.digest)
            self._let_live(other if keep else None)
            self._note(trial="", before="", starts=0)
            said = f"release {live.release.target} was damaged on this disk"
            live = self.live
        if self.ledger.trial and (live is None or live.release.digest != self.ledger.trial):
            said = said or "an unfinished swap was taken back"
            self._note(trial="", before="", starts=0)
        if live is not None and (why := self.why_bad(live.release.digest)):
            self._go_back(live)
            said = f"release {live.release.target} is bad: {why}"
        return said

    def stage(self, release: Release, artefact: Path) -> Slot:
        """Put a release into the idle slot, verified and on the disk; nothing else changes.

        Raise TrustError when the bytes are not the release's, SkerryError while a trial is on
        (the idle slot holds what it would go back to), DiskFullError.
        """
        if self.on_trial:
            raise SkerryError("a release is on trial: its slot's neighbour is kept to go back to")
        name = self._idle_name()
        new = self.root / f"new-{release.digest[:16]}"
        with explained(self.root, "stage a release"):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            self._step("made")
            try:
                place(artefact, new / ARTEFACT)
                _check(new / ARTEFACT, release)
                self._step("placed")
                (new / CONTENT).mkdir()
                if self._unpack is not None:
                    self._unpack(new / ARTEFACT, new / CONTENT)
                for path in (new / CONTENT).rglob("*"):
                    sync(path)
                sync(new / CONTENT)
                self._step("unpacked")
                write_json(new / _ABOUT, asdict(release))
                self._step("described")
                shutil.rmtree(self.root / name, ignore_errors=True)
                self._step("cleared")
                new.rename(self.root / name)
                sync(self.root)
                self._step("staged")
            except BaseException:
                with contextlib.suppress(OSError):
                    shutil.rmtree(new, ignore_errors=True)
                raise
        found = self._slot(name)
        assert found is not None
        return found

    def promote(self) -> Slot:
        """Let the idle slot's release serve, on trial."""
        idle, live = self.idle, self.live
        if idle is None:
            raise SkerryError("there is no staged release to promote")
        before = live.release.digest if live is not None else ""
        self._note(trial=idle.release.digest, before=before, starts=0)
        self._step("noted")
        self._let_live(idle)
        self._step("swapped")
        return idle

    def started(self) -> int:
        """Count a start of the agent during a trial; return how many there were."""
        self._note(starts=self.ledger.starts + 1)
        return self.ledger.starts

    def confirm(self) -> None:
        """The live release was found healthy: the trial is over."""
        live = self.live
        if live is not None:
            bad = {key: why for key, why in self.ledger.bad.items() if key != live.release.digest}
            digest = live.release.digest
            good = [*(each for each in self.ledger.good if each != digest), digest][-GOOD_LIMIT:]
            self._note(trial="", before="", starts=0, good=good, bad=bad)
            self._step("confirmed")

    def revert(self, why: str, *, bad: bool = True) -> Slot | None:
        """Let the release before serve again; return what serves now.

        A live release that is `bad` is remembered as such.
        """
        live = self.live
        if live is not None and bad:
            with contextlib.suppress(SkerryError):  # a full disk must not keep it serving
                self.condemn(live.release.digest, why)
            self._step("condemned")
        self._go_back(live)
        return self.live

    def condemn(self, digest: str, why: str) -> None:
        """Remember that a release is bad on this device."""
        bad = {key: text for key, text in self.ledger.bad.items() if key != digest}
        bad[digest] = why[:500]
        good = [each for each in self.ledger.good if each != digest]
        self._note(bad=dict(list(bad.items())[-BAD_LIMIT:]), good=good)

    def pardon(self, digest: str) -> None:
        """Forget that a release was bad: the operator wants it tried again."""
        self._note(bad={key: text for key, text in self.ledger.bad.items() if key != digest})

    def withdraw(self) -> None:
        """Serve nothing: the operator took the model away. The slots keep what they hold."""
        self._let_live(None)
        self._note(trial="", before="", starts=0)

    def swap_back(self) -> Slot:
        """Let the idle slot's release, found healthy before, serve again, without a trial."""
        idle = self.idle
        if idle is None:
            raise SkerryError("the other slot is empty")
        self._note(trial="", before="", starts=0)
        self._let_live(idle)
        self._step("swapped")
        return idle

    # Behind the scenes.

    def _go_back(self, bad: Slot | None) -> None:
        idle = self.idle
        good = idle is not None and not self.why_bad(idle.release.digest) and intact(idle)
        same = idle is not None and bad is not None and idle.release.digest == bad.release.digest
        self._let_live(idle if good and not same else None)
        self._step("swapped")
        with contextlib.suppress(SkerryError):
            self._note(trial="", before="", starts=0)

    def _let_live(self, slot: Slot | None) -> None:
        with explained(self.root, "swap the slots"):
            if slot is None:
                remove_link(self.root / _LIVE)
            else:
                point(self.root / _LIVE, slot.name)

    def _note(self, **changes: Any) -> None:
        """Change the ledger, on the disk first."""
        after = Ledger(**{**asdict(self.ledger), **changes})
        if after != self.ledger:
            with explained(self._file, "note what serves"):
                write_json(self._file, asdict(after))
            self.ledger = after

    def _live_name(self) -> str:
        link = self.root / _LIVE
        with contextlib.suppress(OSError):
            name = str(link.readlink())
            if name in _NAMES:
                return name
        return ""

    def _idle_name(self) -> str:
        return "b" if self._live_name() == "a" else "a"

    def _slot(self, name: str) -> Slot | None:
        if not name:
            return None
        folder = self.root / name
        about = read_json(folder / _ABOUT)
        if not isinstance(about, dict):
            return None
        try:
            return Slot(name=name, folder=folder, release=Release(**about))
        except TypeError:
            return None


def _ledger(value: object) -> Ledger:
    if isinstance(value, dict):
        with contextlib.suppress(TypeError):
            return Ledger(**value)
    return Ledger()


def _check(path: Path, release: Release) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != release.digest or path.stat().st_size != release.size:
        raise TrustError(
            f"the artefact of {release.target} is {found[:12]}, signed is {release.digest[:12]}"
        )


def intact(slot: Slot) -> bool:
    """Return whether a slot still holds the bytes that were signed."""
    try:
        _check(slot.artefact, slot.release)
    except (OSError, TrustError):
        return False
    return True
