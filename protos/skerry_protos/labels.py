"""Labels: what they may be, and where those that a device states of itself stand.

An operator's labels have plain keys (`site`). What a device states of itself (agent.toml, [labels])
is kept apart under `device/` (`device/site`), so that no device can claim its way into a selector
that means the operator's word.
"""

import re
from collections.abc import Mapping

KEY = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
VALUE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9])?"
KEY_LIMIT = 63
STATED = "device/"
"""What the keys of a device's own labels begin with on the coordinator."""
STATED_LIMIT = 16
"""Most labels that a device may state of itself."""
STATED_KEY_LIMIT = KEY_LIMIT - len(STATED)


def stated_flaws(labels: Mapping[str, str]) -> list[str]:
    """Return what is wrong with labels that a device states of itself; nothing when empty."""
    flaws = []
    if len(labels) > STATED_LIMIT:
        flaws.append(f"a device states at most {STATED_LIMIT} labels, not {len(labels)}")
    for key, value in labels.items():
        if len(key) > STATED_KEY_LIMIT or not re.fullmatch(KEY, key):
            flaws.append(
                f"{key[:80]!r} cannot be a label's key: it takes up to {STATED_KEY_LIMIT} letters, "
                "digits and . _ / - between them"
            )
        elif value and not re.fullmatch(VALUE, value):
            flaws.append(
                f"{value[:80]!r} cannot be the value of label {key!r}: it takes up to 255 letters, "
                "digits and . _ - between them"
            )
    return flaws


def usable_stated(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the first labels, by key, that a device may state; the others are left out."""
    good = {key: labels[key] for key in sorted(labels) if not stated_flaws({key: labels[key]})}
    return dict(list(good.items())[:STATED_LIMIT])
