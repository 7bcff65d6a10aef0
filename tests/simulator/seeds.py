"""Many seeds over all cores: progress, and the first seed that fails with what it broke."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.pool import IMapIterator

from tests.simulator.story import Told, tell

PROGRESS_S = 10.0
FREEZE_AFTER = 3
COLLECT_EVERY = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the stories that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, told at length")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        return _show(tell(asked.seed, shown=100_000), whole=True)
    return _many(range(asked.first, asked.first + asked.seeds), asked.processes)


def told_by(seeds: Iterator[int] | range) -> Iterator[Told]:
    """Tell stories in this process, which then collects garbage between them and not during one."""
    gc.disable()
    try:
        for count, seed in enumerate(seeds):
            yield tell(seed)
            if count == FREEZE_AFTER:
                gc.collect()
                gc.freeze()  # what is loaded now stays: later collections look at little
            elif count % COLLECT_EVERY == 0:
                gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()


_told = 0


def _tell(seed: int) -> Told:
    """Tell one story in a process of the pool."""
    global _told  # noqa: PLW0603 - counted per process
    gc.disable()
    told = tell(seed)
    _told += 1
    if _told == FREEZE_AFTER:
        gc.collect()
        gc.freeze()
    elif _told % COLLECT_EVERY == 0:
        gc.collect()
    return told


def _many(seeds: range, processes: int) -> int:
    began = shown = time.monotonic()
    ends: Counter[str] = Counter()
    events = 0
    virtual_s = 0.0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        stories: IMapIterator[Told] = pool.imap_unordered(_tell, seeds, chunksize=4)
        for count, told in enumerate(stories, 1):
            if told.broken:
                print(f"{count - 1} of {len(seeds)} seeds were good", flush=True)
                pool.terminate()
                return _show(told, whole=False)
            ends.update(told.ended)
            events += told.events
            virtual_s += told.virtual_s
            now = time.monotonic()
            if now - shown > PROGRESS_S:
                shown = now
                rate = count / (now - began)
                print(
                    f"  {count} of {len(seeds)} seeds, {rate:.1f} a second, "
                    f"{(len(seeds) - count) / rate:.0f} s left",
                    flush=True,
                )
    took = time.monotonic() - began
    print(
        f"{len(seeds)} seeds hold: {took:.0f} s, {len(seeds) / took:.1f} seeds a second on "
        f"{processes} processes, {events} packets and events, {virtual_s / 86400:.1f} days of "
        f"virtual time; runs ended {dict(sorted(ends.items()))}"
    )
    return 0


def _show(told: Told, *, whole: bool) -> int:
    if told.broken or whole:
        print("\n".join(told.last))
    words = f"{told.events} events, trace {told.trace}, {told.virtual_s:.0f} s, runs {told.ended}"
    print(f"seed {told.seed}: {words}")
    if not told.broken:
        return 0
    print(f"\nseed {told.seed} breaks what must hold:\n  {told.broken}")
    print(f"again, at length: make simulate SEED={told.seed}", file=sys.stderr)
    return 1
