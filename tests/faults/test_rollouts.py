"""The rows about rollouts, a trial or two of each; `make faults` does the full counts."""

from pathlib import Path

import pytest

from tests.faults.rows import rollouts
from tests.faults.table import ROWS, Row, Unable
from tests.faults.world import World

pytestmark = [pytest.mark.network, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

COUNTS = {
    (rollouts.killed_rolling_out, "mqtt"): 2,
    (rollouts.full_in_a_download, "grpc"): 1,
    (rollouts.wrong_clock, "grpc"): 2,
}


def chosen(link: str) -> list[tuple[Row, int]]:
    return [(row, n) for row in ROWS if row.link == link and (n := COUNTS.get((row.act, link)))]


@pytest.mark.parametrize("link", ["grpc", "mqtt"])
def test_a_fault_in_a_rollout_breaks_nothing(link: str, tmp_path: Path) -> None:
    wanted = chosen(link)
    assert wanted
    with World(tmp_path, link, wanted[0][0].devices) as world:
        for row, count in wanted:
            try:
                tally = row.run_in(world, count)
            except Unable:
                continue
            assert tally.trials >= count
            assert not tally.violations, "\n".join(tally.violations)
