"""Which devices: `k=v`, `k!=v`, `k in (a,b)`, `k not in (a,b)`, `k`, `!k`, joined by commas.

A key that begins with `device/` is a label that devices state of themselves (labels of the protos).
All parts must hold. `k!=v` and `k not in (…)` also hold for a device without the label.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from skerry_protos.errors import ConfigError
from skerry_protos.labels import KEY, STATED, VALUE

SELECTOR_LIMIT = 2000
LABELS_LIMIT = 64
"""Most labels a device may have."""

_PART = re.compile(
    rf"\s*(?:(?P<not>!)\s*(?P<absent>{KEY})"
    rf"|(?P<set>{KEY})\s+(?P<notin>not\s+)?in\s*\((?P<values>[^()]*)\)"
    rf"|(?P<key>{KEY})\s*(?P<op>==|=|!=)\s*(?P<value>{VALUE}|)"
    rf"|(?P<present>{KEY}))\s*(?P<end>,|$)"
)


class SelectorError(ConfigError):
    """A selector cannot be read, or a label cannot be kept."""

    code = "selector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One part of a selector: the label's value is (not) one of `values`; None: any value."""

    key: str
    values: frozenset[str] | None
    holds: bool = True

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels meet this part."""
        value = labels.get(self.key)
        among = value is not None and (self.values is None or value in self.values)
        return among == self.holds


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold; none of them: every device."""

    requirements: tuple[Requirement, ...]
    text: str = ""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether a device with these labels is meant."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def hint(self, known: Iterable[Mapping[str, str]]) -> str:
        """Return what may have been meant, when no device of a fleet with labels `known` fits."""
        values: dict[str, set[str]] = {}
        for labels in known:
            for key, value in labels.items():
                values.setdefault(key, set()).add(value)
        for requirement in self.requirements:
            if not requirement.holds:
                continue
            if requirement.key not in values and STATED + requirement.key in values:
                stated = STATED + requirement.key
                return f"no operator has set {requirement.key!r}; devices state it: {stated!r}"
            if requirement.key not in values:
                near = difflib.get_close_matches(requirement.key, values, 1, 0.5)
                also = f"; did you mean {near[0]!r}?" if near else ""
                return f"no device has a label {requirement.key!r}{also}"
            held = values[requirement.key]
            if requirement.values is not None and not requirement.values & held:
                some = ", ".join(sorted(held)[:8])
                return f"label {requirement.key!r} is one of: {some}"
        return "each part matches some device, but none matches all of them"


def parse(text: str) -> Selector:
    """Return the selector that `text` says, or raise SelectorError naming where it goes wrong."""
    if len(text) > SELECTOR_LIMIT:
        raise SelectorError(f"the selector is longer than {SELECTOR_LIMIT} characters")
    if not text.strip():
        return Selector(())
    found, position, ended = [], 0, ","
    while ended == ",":
        part = _PART.match(text, position)
        if part is None:
            raise SelectorError(
                f"cannot read the selector {text!r} at {text[position : position + 30].strip()!r}",
                hint="write k=v, k!=v, 'k in (a,b)', 'k not in (a,b)', k or !k, joined by commas",
            )
        found.append(_requirement(part, text))
        position, ended = part.end(), part["end"]
    return Selector(tuple(found), text)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise SelectorError for labels that a selector could not name."""
    if len(labels) > LABELS_LIMIT:
        raise SelectorError(f"a device has at most {LABELS_LIMIT} labels, not {len(labels)}")
    for key, value in labels.items():
        if not re.fullmatch(KEY, key):
            raise SelectorError(
                f"{key[:80]!r} cannot be a label's key",
                hint="use up to 63 letters, digits and . _ / - between them",
            )
        if value and not re.fullmatch(VALUE, value):
            raise SelectorError(
                f"{value[:80]!r} cannot be the value of label {key!r}",
                hint="use up to 255 letters, digits and . _ - between them",
            )


def _requirement(part: re.Match[str], text: str) -> Requirement:
    if part["absent"]:
        return Requirement(key=part["absent"], values=None, holds=False)
    if part["present"]:
        return Requirement(key=part["present"], values=None)
    if part["key"]:
        values = frozenset([part["value"]])
        return Requirement(key=part["key"], values=values, holds=part["op"] != "!=")
    members = [value.strip() for value in part["values"].split(",")]
    if not all(re.fullmatch(VALUE, value) for value in members):
        raise SelectorError(f"cannot read the values of {part['set']!r} in the selector {text!r}")
    return Requirement(key=part["set"], values=frozenset(members), holds=not part["notin"])
