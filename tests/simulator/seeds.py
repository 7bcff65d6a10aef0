"""Many seeds over all cores: progress, and the first seed that fails with what it broke."""

import argparse
import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.pool import Pool

from tests.simulator.bugs import BUGS, planted
from tests.simulator.story import Told, tell

PROGRESS_S = 10.0
FREEZE_AFTER = 3
COLLECT_EVERY = 20
BLOCK = 40
"""Seeds of one process that are begun together: the time is looked at between blocks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the stories that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, told at length")
    parser.add_argument("--short", action="store_true", help="shorter stories, more a second")
    parser.add_argument("--bug", default="", choices=["", *BUGS], help="plant a bug on purpose")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no more seeds after so long"
    )
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        with planted(asked.bug):
            told = tell(asked.seed, short=asked.short, shown=100_000)
        return _show(told, whole=True)
    seeds = range(asked.first, asked.first + asked.seeds)
    story = functools.partial(_tell, short=asked.short, bug=asked.bug)
    return _many(seeds, story, processes=asked.processes, seconds=asked.seconds)


def told_by(seeds: Iterable[int], *, short: bool = False) -> Iterator[Told]:
    """Tell stories in this process, which then collects garbage between them and not during one."""
    gc.disable()
    try:
        for count, seed in enumerate(seeds):
            yield tell(seed, short=short)
            _collect(count)
    finally:
        gc.unfreeze()
        gc.enable()


def _collect(count: int) -> None:
    if count == FREEZE_AFTER:
        gc.collect()
        gc.freeze()  # what is loaded now stays: later collections look at little
    elif count % COLLECT_EVERY == 0:
        gc.collect()


_counts = itertools.count()


def _tell(seed: int, *, short: bool, bug: str) -> Told:
    """Tell one story in a process of the pool."""
    gc.disable()
    with planted(bug):
        told = tell(seed, short=short)
    _collect(next(_counts))
    return told


def _many(
    seeds: range, story: Callable[[int], Told], *, processes: int, seconds: float = float("inf")
) -> int:
    began = shown = time.monotonic()
    ends: Counter[str] = Counter()
    count = events = 0
    virtual_s = 0.0
    with _pool(processes) as pool:
        for told in _in_time(pool, story, seeds, block=BLOCK * processes, until=began + seconds):
            if told.broken:
                print(f"{count} of {len(seeds)} seeds were good", flush=True)
                return _show(told, whole=False)
            count += 1
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
        f"{count} seeds hold ({seeds.start} to {seeds.start + count - 1}): {took:.0f} s, "
        f"{count / took:.1f} seeds a second on {processes} processes, {events} packets and events, "
        f"{virtual_s / 86400:.1f} days of virtual time; runs ended {dict(sorted(ends.items()))}"
    )
    if count < len(seeds):
        print(f"stopped for the time; go on with --first {seeds.start + count}")
    return 0


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[Pool | None]:
    """Yield so many processes, or None where this one is enough."""
    if processes < 2:
        yield None
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool


def _in_time(
    pool: Pool | None, story: Callable[[int], Told], seeds: range, *, block: int, until: float
) -> Iterator[Told]:
    """Yield the stories of whole blocks of seeds, until all are told or the time is over."""
    for place in range(0, len(seeds), block):
        if time.monotonic() > until:
            return
        some = seeds[place : place + block]
        yield from map(story, some) if pool is None else pool.imap_unordered(story, some, 4)


def _show(told: Told, *, whole: bool) -> int:
    if told.broken or whole:
        print("\n".join(told.last))
    words = f"{told.events} events, trace {told.trace}, {told.virtual_s:.0f} s, runs {told.ended}"
    print(f"seed {told.seed}: {words}")
    if not told.broken:
        return 0
    print(f"\nseed {told.seed} breaks what must hold:\n  {told.broken}")
    short = " --short" if told.short else ""
    print(f"again, at length: python -m tests.simulator --seed {told.seed}{short}", flush=True)
    return 1
