"""The self test of a release, in its own process."""

from pathlib import Path
from typing import Any

import pytest
from skerry_edge.inference.selftest import Trials
from skerry_protos.errors import DeadlineError, SkerryError

from tests.edge.inference.test_service import slot


async def test_a_good_release_passes_and_is_measured(tmp_path: Path) -> None:
    found = await Trials().test(slot(tmp_path), timeout_s=60)
    assert found["agreement"] == found["accuracy"] == 1
    assert {"load_s", "latency_p95_s", "memory_bytes"} <= set(found)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"golden_from": 7}, "of the golden set; 90.0% are needed"),
        ({"broken": "nan"}, "numbers that are not finite"),
        ({"broken": "file"}, "cannot load model.onnx"),
    ],
)
async def test_a_bad_release_says_why(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(SkerryError, match=why):
        await Trials().test(slot(tmp_path, **options), timeout_s=60)


async def test_limits(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match="took more than"):
        await Trials().test(slot(tmp_path), timeout_s=0.01)
    with pytest.raises(SkerryError):
        await Trials(memory_bytes=1 << 20).test(slot(tmp_path), timeout_s=60)
