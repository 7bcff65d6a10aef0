"""Run options: what is wrong is named, and what is right comes back the same."""

from typing import Any

import pytest
from skerry_cloud.runs.plan import RunOptions
from skerry_protos.errors import ConfigError


def test_options_come_back_the_same() -> None:
    options = RunOptions.parse(
        {
            "selector": "site=a",
            "capabilities": ["torch"],
            "quorum": 0.8,
            "min_devices": 3,
            "run_config": {"lr": 0.1, "name": "x", "fast": True},
            "limits": {"seconds": 60},
        }
    )
    assert RunOptions.parse(options.to_json()) == options
    assert (options.capabilities, options.limits.seconds) == (("torch",), 60.0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quorom": 1}, "did you mean 'quorum'"),
        ({"limits": {"second": 1}}, "did you mean 'seconds'"),
        ({"quorum": 0}, "quorum is 0"),
        ({"quorum": 1.1}, "at most 1"),
        ({"fraction": "all"}, "fraction must be float"),
        ({"min_devices": 0}, "min_devices is 0"),
        ({"round_deadline_s": float("nan")}, "round_deadline_s is nan"),
        ({"run_config": {"a": [1]}}, "run_config.a"),
        ({"run_config": {"a": "x" * 9000}}, "8192 bytes"),
        ([], "must be a table"),
    ],
)
def test_what_is_wrong_is_named(options: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RunOptions.parse(options)
