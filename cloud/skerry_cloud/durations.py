"""Durations as people write them: `90s`, `15m`, `1h30m`, `7d`."""

import re

from skerry_protos.errors import ConfigError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")


def parse_duration(text: str) -> float:
    """Return the seconds that `text` says, or raise ConfigError."""
    word = text.strip().lower()
    if len(word) > 40 or not _WHOLE.fullmatch(word):
        raise ConfigError(f"not a duration: {text[:40]!r}", hint="write 90s, 15m, 1h30m or 7d")
    return sum(
        float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([smhdw])", word)
    )


def shown_duration(seconds: float) -> str:
    """Return seconds as a person says them, to two units."""
    if seconds < 1:
        return f"{seconds:.2g}s"
    left, words = round(seconds), []
    for unit, size in sorted(SECONDS.items(), key=lambda item: -item[1]):
        if unit != "w" and left >= size:
            words.append(f"{left // int(size)}{unit}")
            left %= int(size)
    return "".join(words[:2])
