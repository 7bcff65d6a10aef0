"""Codecs in a run's server side: models coded on their way out, updates made plain on their way in.

The app sees neither. An update is added to the exact weights that were asked with, even where the
device was sent them with loss: rounding then never piles up in the model. Runs in the child.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from skerry_protos import records as files
from skerry_protos.codecs import NONE, STYPE, Codec
from skerry_protos.errors import PeerError
from skerry_protos.messages import INLINE_LIMIT
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor

if TYPE_CHECKING:
    from skerry_cloud.runs.asker import Ask

Group = Mapping[str, Tensor]

CODED = frozenset({"train", "evaluate"})
"""Messages whose model is coded; all others are the app's own business."""


@dataclass(slots=True)
class Coding:
    """What the server side of one run knows of codecs."""

    used: bool = False  # replies may come coded
    broadcast: str = NONE
    decodes: set[int] = field(default_factory=set)  # nodes that take a coded model
    beside: set[int] = field(default_factory=set)  # nodes that take a model and the rest apart
    asked: dict[str, Records] = field(default_factory=dict)  # by task, until it is answered

    def sent(self, asks: "Sequence[Ask]") -> list[Records]:
        """Return what each device is sent; those that share content share it still."""
        made: dict[int, Records] = {}
        found = []
        for ask in asks:
            content = ask.content
            if ask.node in self.decodes and ask.message_type.partition(".")[0] in CODED:
                if id(content) not in made:
                    made[id(content)] = _coded(content, self.broadcast)
                content = made[id(content)]
            found.append(content)
        return found

    def remember(self, tasks: Sequence[str], asks: "Sequence[Ask]") -> None:
        """Keep what was asked with until the answer is handed on: updates are relative to it."""
        if self.used:
            self.asked |= {task: ask.content for task, ask in zip(tasks, asks, strict=True)}

    def plain(self, reply: Records, asked: Records | None, place: Callable[[], Path]) -> Records:
        """Return a reply with its update made whole, or raise PeerError.

        A large one is decoded tensor by tensor into a file at `place()`, which has no name any more
        when this returns: it goes when the records do.
        """
        coded = [name for name, group in reply.arrays.items() if _is_coded(group)]
        if not coded:
            return reply
        if asked is None or len(coded) > 1:
            raise PeerError("it came coded, which nobody asked for")
        if len(reply.arrays[coded[0]]) != 1:
            raise PeerError("it has coded arrays beside others in one group")
        from skerry_protos.codecs.updates import decode_update, group_to_code, the_coded

        held = asked.arrays.get(group_to_code(asked) or "", {})
        updated = decode_update(the_coded(reply.arrays[coded[0]]), held)
        like = Records(
            arrays={**reply.arrays, coded[0]: dict(held)},
            metrics=reply.metrics,
            configs=reply.configs,
        )
        parts = files.encode_each(like, _tensors(like, coded[0], updated))
        if like.nbytes <= INLINE_LIMIT:
            return files.decode(b"".join(parts))
        path = place()
        try:
            with path.open("xb") as file:
                file.writelines(parts)
            return files.read(path)
        finally:
            path.unlink(missing_ok=True)


def _tensors(like: Records, coded: str, updated: Iterator[tuple[str, Tensor]]) -> Iterator[Tensor]:
    for name, group in like.arrays.items():
        if name == coded:
            for _, tensor in updated:
                yield tensor
        else:
            yield from group.values()


def _coded(content: Records, codec: str) -> Records:
    """Return the content with its model coded; as it is where there is none, or nothing to gain."""
    from skerry_protos.codecs.updates import coded_group, encode_model, group_to_code

    name = group_to_code(content)
    if name is None or not content.arrays[name]:
        return content
    coded = encode_model(Codec(name=codec), content.arrays[name])
    if coded.nbytes >= sum(tensor.nbytes for tensor in content.arrays[name].values()):
        return content  # a model of a few numbers
    return Records(
        arrays={**content.arrays, name: coded_group(coded)},
        metrics=content.metrics,
        configs=content.configs,
    )


def _is_coded(group: Group) -> bool:
    return any(tensor.stype == STYPE for tensor in group.values())
