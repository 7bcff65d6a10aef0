"""The server side of a calibration: each device is asked once, what they answer is merged.

It runs in a run's child and loads none of the app's code. What every device says of a tensor must
fit its number of examples and itself, and be of the others' size; one that does not is named and
left out. Replies are looked at twice, so that at most one's histograms are held at a time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.calibration import (
    ABOUT,
    EXAMPLES,
    FOLDER,
    LEAST_EXAMPLES,
    MESSAGE,
    METRICS,
    PLAN,
    RESULT,
    Graph,
    Plan,
    Spreads,
    outliers,
    read_plan,
)
from skerry_protos.errors import ConfigError, PeerError, SkerryError
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor

from skerry_cloud.runs.asker import Answer, Ask, Asker
from skerry_cloud.runs.replies import in_order
from skerry_cloud.strategies import RoundPlan

PHASE = "query"


class CalibrationError(SkerryError):
    """No device gave ranges that can be used."""

    code = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """A reply that is fit by itself."""

    answer: Answer
    examples: int
    magnitudes: dict[str, NDArray[np.float64]]  # largest |x| of each tensor, by runtime


def calibrate(asker: Asker, app: Path, plan: RoundPlan, ready: Callable[[], None]) -> None:
    """Ask the devices, merge their spreads, and hand them over as the run's model."""
    asked = _plan_of(app)
    ready()
    asker.begin_round(1, 1)
    nodes = asker.sample(plan.fraction, plan.seed, 1)
    content = Records(configs={"config": {"examples": asked.examples}})
    asks = [Ask(node=one.node, message_type=MESSAGE, content=content) for one in nodes]
    tasks = asker.ask(asks, round_=1, phase=PHASE)
    heard, refused, failed = [], {}, ""
    answers = in_order(
        asker, tasks, [one.node for one in nodes], [content] * len(tasks), phase=PHASE
    )
    for answer in answers:
        if answer.content is None:
            failed = failed or answer.why
            continue
        try:
            heard.append(_heard(answer, asked))
        except PeerError as error:
            refused[answer.task] = error.message
        answer.content = None
    refused |= _too_large(heard, asked, asker.max_norm_ratio)
    asker.refuse(refused)
    fit = [one for one in heard if one.answer.task not in refused]
    if not fit:
        why = next(iter(refused.values()), failed or "none was asked")
        raise CalibrationError(f"no device gave ranges that can be used: {why}")
    asker.measure_all(1, PHASE, {one.answer.node: {EXAMPLES: one.examples} for one in fit})
    asker.keep_model(_merged(asker, fit, asked))


def _plan_of(app: Path) -> Plan:
    try:
        return read_plan((app / FOLDER / PLAN).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"the app has no {FOLDER}/{PLAN}: {error.strerror}",
            hint="skerry models export RUN --calibrate devices makes it",
        ) from error


def _heard(answer: Answer, plan: Plan) -> _Heard:
    """Return a reply that fits the plan and itself, or raise PeerError naming the tensor."""
    assert answer.content is not None
    said: Any = answer.content.metrics.get(METRICS, {}).get(EXAMPLES)
    if not isinstance(said, int) or not LEAST_EXAMPLES <= said <= plan.examples:
        raise PeerError(
            f"its number of examples is {said!r:.40}; expected {LEAST_EXAMPLES} to {plan.examples}"
        )
    if not answer.content.arrays or set(answer.content.arrays) - set(plan.graphs):
        found = sorted(answer.content.arrays)[:8]
        raise PeerError(f"its arrays are of {found!r:.200}; asked was {sorted(plan.graphs)}")
    magnitudes = {}
    for runtime, given in answer.content.arrays.items():
        graph = plan.graphs[runtime]
        spreads = Spreads.parse(given, len(graph.tensors))
        if (flaw := spreads.flaw(graph.counts(said))) is not None:
            raise PeerError(f"{_tensor(runtime, graph, flaw[0])}: {flaw[1]}")
        magnitudes[runtime] = np.maximum(-spreads.low, spreads.high)
    return _Heard(answer=answer, examples=said, magnitudes=magnitudes)


def _too_large(heard: list[_Heard], plan: Plan, ratio: float) -> dict[str, str]:
    """Return the tasks of devices whose tensors are out of all proportion to the others'."""
    found: dict[str, str] = {}
    for runtime, graph in plan.graphs.items():
        have = [one for one in heard if runtime in one.magnitudes]
        if not have:
            continue
        several = np.stack([one.magnitudes[runtime] for one in have])
        for device, tensor in outliers(several, ratio).items():
            found[have[device].answer.task] = (
                f"{_tensor(runtime, graph, tensor)} reaches {several[device, tensor]:.4g}, more "
                f"than {ratio:g} times what it does on the other devices"
            )
    return found


def _merged(asker: Asker, fit: list[_Heard], plan: Plan) -> Records:
    """Return all devices' spreads as one, with the plan and who they are of."""
    group: dict[str, Tensor] = {}
    about: dict[str, Any] = {"plan": plan.to_json(), "of": {}}
    for runtime, graph in plan.graphs.items():
        have = [one for one in fit if runtime in one.magnitudes]
        if not have:
            asker.note(f"no device has the runtime {runtime}: there are no ranges for it")
            continue
        merged = Spreads.empty(len(graph.tensors))
        for one in have:
            again = asker.load(one.answer)
            merged.merge(Spreads.parse(again.arrays[runtime], len(graph.tensors)))
        group |= {f"{runtime}.{name}": tensor for name, tensor in merged.tensors().items()}
        examples = sum(min(one.examples, graph.examples) for one in have)
        about["of"][runtime] = {"devices": len(have), "examples": examples}
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    return Records(arrays={RESULT: {ABOUT: Tensor.of(text), **group}})


def _tensor(runtime: str, graph: Graph, place: int) -> str:
    return f"{runtime} tensor {graph.tensors[place].name!r:.120}"
