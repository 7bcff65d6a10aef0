"""Durations as people write them."""

import pytest
from skerry_cloud.durations import parse_duration, shown_duration
from skerry_protos.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("90s", 90, "1m30s"), ("15m", 900, "15m"), ("1h30m", 5400, "1h30m"), ("7d", 604800, "7d"),
     ("1.5h", 5400, "1h30m"), ("2W", 1209600, "14d"), ("0.5s", 0.5, "0.5s")],
)  # fmt: skip
def test_durations_are_read_and_shown(text: str, seconds: float, shown: str) -> None:
    assert parse_duration(text) == seconds
    assert shown_duration(seconds) == shown


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1 h", "1y", "1h!", "1..5h", "9" * 50 + "s"])
def test_what_is_no_duration_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration(text)
