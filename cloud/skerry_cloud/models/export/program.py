"""The model as torch.export sees it: its layers, its operations, and why it cannot be exported."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skerry_cloud.models.export import ExportError

_FRAME = re.compile(r'File "([^"]+)", line (\d+)(?:, in (\w+))?')
_OP = re.compile(r"(?:torch\.ops\.)?(aten|prims|torchvision|\w+)(?:\.|::)(\w+)(?:\.\w+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The traced model; `dynamic` when any number of examples fits."""

    program: torch.export.ExportedProgram
    dynamic: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int  # of one example
    parameters: int


def trace(model: nn.Module, example: Sequence[torch.Tensor], app: Path) -> Traced:
    """Trace the model with a free number of examples, else with one; raise ExportError."""
    inputs = _input_names(model, len(example))
    batch = torch.export.Dim("batch", min=1, max=65536)
    dynamic = True
    with _quiet(), torch.no_grad():
        found = _output(model, example, app)
        try:
            program = torch.export.export(
                model, tuple(example), dynamic_shapes=tuple({0: batch} for _ in example)
            )
        except Exception as first:
            if depends_on_data(first):
                raise _data_dependent(first, app) from first
            dynamic = False
            try:
                program = torch.export.export(model, tuple(each[:1] for each in example))
            except Exception as error:
                if depends_on_data(error):
                    raise _data_dependent(error, app) from error
                raise ExportError(
                    f"torch cannot trace the model{_at(error, app)}: {_line(error)}"
                ) from error
    count = len(found)
    outputs = ("output",) if count == 1 else tuple(f"output_{n}" for n in range(count))
    return Traced(
        program=program,
        dynamic=dynamic,
        inputs=inputs,
        outputs=outputs,
        macs=_macs(model, example),
        parameters=sum(each.numel() for each in model.parameters()),
    )


def depends_on_data(error: BaseException) -> bool:
    """Return whether an error of torch says that a shape depends on the data."""
    seen: BaseException | None = error
    while seen is not None:
        if "DataDependent" in type(seen).__name__ or "data-dependent" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def layer_of(node: Any) -> str:
    """Return the layer (the module's path) that a node of the graph belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    # torch writes getattr(L['self'], ...) or a dotted path; the outermost module has none.
    return path.removeprefix("L['self'].") or "the model itself"


def where_is(program: torch.export.ExportedProgram, op: str) -> str:
    """Return the first layer that uses an operation, named as `aten.x` or `aten::x`."""
    wanted = op.replace("::", ".").removeprefix("torch.ops.")
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith(wanted):
            kind = (node.meta.get("nn_module_stack") or {}).values()
            name = str(list(kind)[-1][1]) if kind else ""
            return f"layer {layer_of(node)!r}" + (f" ({name.rsplit('.', 1)[-1]})" if name else "")
    return "a layer"


def lacking(
    runtime: str, error: BaseException, program: torch.export.ExportedProgram
) -> ExportError:
    """Return the error for an op that a runtime's converter does not have, naming its layer."""
    text, seen = "", error
    while seen is not None:
        text += f"{seen}\n"
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for target in sorted(targets, key=len, reverse=True):
        bare = target.rsplit(".", 1)[0]
        if target in text or bare.replace(".", "::") in text or f"{bare}\n" in text:
            return ExportError(
                f"{runtime} lacks the operation {target}, which {where_is(program, target)} uses",
                hint="replace the layer, or export --to another runtime",
            )
    return ExportError(f"{runtime} cannot take the model: {_line(error)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _output(model: nn.Module, example: Sequence[torch.Tensor], app: Path) -> tuple[Any, ...]:
    """Return what the model answers, each a tensor of numbers that are finite."""
    try:
        answer = model(*example)
    except Exception as error:
        raise ExportError(
            f"the model fails at its example{_at(error, app)}: {_line(error)}"
        ) from error
    several = answer if isinstance(answer, tuple | list) else (answer,)
    if not all(isinstance(each, torch.Tensor) for each in several):
        raise ExportError("the model returns something else than tensors")
    if not all(bool(torch.isfinite(each).all()) for each in several):
        raise ExportError("the model answers its example with NaN or infinite numbers")
    return tuple(several)


def _input_names(model: nn.Module, count: int) -> tuple[str, ...]:
    if isinstance(model, nn.Sequential) or count == 1:
        return ("input",) if count == 1 else tuple(f"input_{n}" for n in range(count))
    code = type(model).forward.__code__
    names = code.co_varnames[1 : code.co_argcount]
    return tuple(names[:count]) if len(names) >= count else _input_names(nn.Sequential(), count)


def _macs(model: nn.Module, example: Sequence[torch.Tensor]) -> int:
    """Return the multiplications of one example: products, convolutions, attention."""
    counter = FlopCounterMode(display=False)
    one = tuple(each[:1] for each in example)
    with counter, torch.no_grad():
        model(*one)
    counted = counter.get_total_flops() // 2
    steps = _steps(model, one)
    return int(counted + steps)


def _steps(model: nn.Module, one: tuple[torch.Tensor, ...]) -> int:
    """Return the multiplications of recurrent layers, which torch's counter does not see."""
    total = 0

    def count(layer: nn.Module, given: tuple[Any, ...], _answer: Any) -> None:
        nonlocal total
        sequence = given[0]
        length = sequence.shape[1 if layer.batch_first else 0] if sequence.dim() == 3 else 1
        weights = sum(p.numel() for n, p in layer.named_parameters() if n.startswith("weight"))
        total += weights * int(length)

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, nn.RNNBase)
    ]
    with torch.no_grad():
        model(*one)
    for hook in hooks:
        hook.remove()
    return total


def _data_dependent(error: BaseException, app: Path) -> ExportError:
    return ExportError(
        f"the model has shapes that depend on the data{_at(error, app)}",
        hint="boolean masks, nonzero(), item() and loops over values cannot be exported; use "
        "torch.where or a fixed size",
    )


def _at(error: BaseException, app: Path) -> str:
    """Return where in the app's code an error arose, as the end of a sentence."""
    frames: list[tuple[str, str, str]] = []
    seen: BaseException | None = error
    while seen is not None:
        frames += _FRAME.findall(str(seen))
        trace_back = seen.__traceback__
        while trace_back is not None:
            code = trace_back.tb_frame.f_code
            frames.append((code.co_filename, str(trace_back.tb_lineno), code.co_name))
            trace_back = trace_back.tb_next
        seen = seen.__cause__ or seen.__context__
    ours = [each for each in frames if Path(each[0]).is_relative_to(app)]
    if not ours:
        return ""
    file, line, name = ours[-1]
    inside = f" in {name}()" if name else ""
    return f",{inside} at {Path(file).relative_to(app)}:{line}"


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    first = next((line.strip() for line in text if line.strip()), "")
    return f"{type(error).__name__}: {first[:400]}" if first else type(error).__name__
