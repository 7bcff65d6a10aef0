"""A run's first model: the app's own, or another run's in its place. Runs in the child."""

from collections.abc import Mapping

from skerry_protos.errors import ConfigError, SkerryError
from skerry_protos.records import read
from skerry_protos.tensors import Tensor

from skerry_cloud.runs.asker import Asker
from skerry_cloud.strategies import ARRAYS, RoundPlan

NAMED = 3


def begin_with(asker: Asker, plan: RoundPlan, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors to begin with: those of the run that the plan names, else the app's own.

    `made` is the app's own first model. Where the other's does not fit it, raise ConfigError, or
    note it and go on with the app's own where the plan says so.
    """
    if plan.initial is None:
        return dict(made)
    try:
        found = read(plan.initial).arrays.get(ARRAYS, {})
        why = _difference(found, made)
    except (SkerryError, OSError) as error:
        found, why = {}, f"it cannot be read: {error}"
    if why:
        said = f"the model of run {plan.initial_run} does not fit the app's: {why}"
        if not plan.initial_if_fits:
            raise ConfigError(said, hint="begin without it, or with the app that trained it")
        _note(asker, f"begins with the app's own model: {said}")
        return dict(made)
    _note(asker, f"begins with the model of run {plan.initial_run}")
    return {name: found[name] for name in made}


def not_begun_with(asker: Asker, plan: RoundPlan) -> None:
    """Note that an app made its first model where nobody could put another in its place."""
    if plan.initial is not None:
        _note(
            asker,
            f"the model of run {plan.initial_run} was not used: this app hands its first model to "
            "no Strategy.start()",
        )


def _note(asker: Asker, text: str) -> None:
    if not asker.goes_on:
        asker.note(text)


def _difference(found: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> str:
    if missing := sorted(made.keys() - found.keys()):
        return f"it lacks {_names(missing)}"
    if more := sorted(found.keys() - made.keys()):
        return f"it has {_names(more)} too"
    for name, tensor in made.items():
        if _kind(found[name]) != _kind(tensor):
            return f"{name[:80]!r} is {_shown(found[name])} in it, {_shown(tensor)} in the app's"
    return ""


def _kind(tensor: Tensor) -> tuple[object, ...]:
    shape = tensor.stype_shape if tensor.stype else tensor.shape
    return (tensor.stype, tensor.stype_dtype or tensor.dtype, tuple(shape))


def _shown(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{tensor.dtype.name.lower()} {shape}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name[:80]) for name in names[:NAMED]) + more
