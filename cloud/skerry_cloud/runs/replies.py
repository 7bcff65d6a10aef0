"""The replies to a question, screened and in the order of the tasks, each as early as is certain.

Floating-point sums depend on their order, so replies are handed on in the order in which they
were asked for, whichever came first. One that has to wait does so as a file.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from skerry_protos.errors import PeerError
from skerry_protos.records import Records

from skerry_cloud.runs.asker import Answer, Asker
from skerry_cloud.screening import FIT, RoundScreen, flaws

SCREENED = frozenset({"train", "evaluate"})
"""The phases whose replies a strategy merges; answers to queries are the app's own business."""


def in_order(
    asker: Asker,
    tasks: Sequence[str],
    nodes: Sequence[int],
    asked: Sequence[Records],
    *,
    phase: str,
    exact: bool = False,
) -> Iterator[Answer]:
    """Yield each task's answer, loaded; one that is not fit to be used comes as a failure.

    `asked` holds each task's content; with `exact` a reply's arrays must look as the task's.
    """
    screen = None
    if phase in SCREENED:
        screen = RoundScreen(
            tasks,
            asked[0] if asked else None,
            arrays=phase == "train",
            exact=exact,
            max_norm_ratio=asker.max_norm_ratio,
        )
    content = dict(zip(tasks, asked, strict=True))
    waiting: dict[str, Answer] = {}
    turn = deque(tasks)
    for answer in asker.answers(tasks, nodes):
        waiting[answer.task] = answer
        if screen is not None:
            _hear(asker, screen, answer, content[answer.task], keep=answer.task == turn[0])
        while turn and turn[0] in waiting:
            first = waiting[turn[0]]
            if not _settle(asker, screen, first):
                break
            del waiting[turn.popleft()]
            yield first


def _hear(
    asker: Asker, screen: RoundScreen[str], answer: Answer, asked: Records, *, keep: bool
) -> None:
    """Look at a reply as it comes; only one whose turn it is stays loaded."""
    if answer.source is None:
        screen.miss(answer.task)
        return
    try:
        answer.content = asker.load(answer)
    except PeerError as error:
        _refuse(asker, answer, f"its reply cannot be read: {error.message}")
        screen.miss(answer.task)
        return
    screen.hear(answer.task, answer.content, asked)
    if not keep:
        answer.content = None


def _settle(asker: Asker, screen: RoundScreen[str] | None, answer: Answer) -> bool:
    """Load a reply that can be used, or make it a failure; return False when neither is certain."""
    if answer.source is None:
        return True
    verdict = FIT if screen is None else screen.verdict(answer.task)
    if verdict is None:
        answer.content = None
        return False
    if verdict != FIT:
        _refuse(asker, answer, verdict)
    elif answer.content is None:
        try:
            answer.content = asker.load(answer)
        except PeerError as error:
            _refuse(asker, answer, f"its reply cannot be read: {error.message}")
    return True


def _refuse(asker: Asker, answer: Answer, why: str) -> None:
    answer.source, answer.content, answer.why = None, None, why
    asker.refuse({answer.task: why})


def screen_together(
    asker: Asker, asked: Records | None, answers: Sequence[Answer], *, phase: str
) -> None:
    """Load answers that were fetched together; those not fit to be used become failures."""
    for answer in answers:
        if answer.source is not None:
            try:
                answer.content = asker.load(answer)
            except PeerError as error:
                _refuse(asker, answer, f"its reply cannot be read: {error.message}")
    if phase not in SCREENED:
        return
    replies = {one.task: one.content for one in answers if one.content is not None}
    ratio = asker.max_norm_ratio
    found = flaws(asked, replies, arrays=phase == "train", max_norm_ratio=ratio)
    for answer in answers:
        if answer.task in found:
            _refuse(asker, answer, found[answer.task])
