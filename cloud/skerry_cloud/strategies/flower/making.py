"""Flower's strategies and an app's ServerApp, found by name."""

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import Strategy
from skerry_protos.errors import ConfigError

from skerry_cloud.strategies import RoundPlan


def make_strategy(plan: RoundPlan, *, fraction_evaluate: float) -> Strategy:
    """Return Flower's strategy of that name; ConfigError names the nearest one or its argument."""
    known = {
        name.lower(): name
        for name in strategies.__all__
        if inspect.isclass(found := getattr(strategies, name))
        and issubclass(found, Strategy)
        and not inspect.isabstract(found)
    }
    name = known.get(plan.strategy.lower())
    if name is None:
        near = get_close_matches(plan.strategy.lower(), known, n=1, cutoff=0.4)
        hint = f"did you mean {known[near[0]]}?" if near else f"there are {sorted(known.values())}"
        raise ConfigError(f"there is no strategy {plan.strategy!r}", hint=hint)
    made = getattr(strategies, name)
    takes = _arguments(made)
    for option in plan.strategy_options:
        if option not in takes:
            near = get_close_matches(option, takes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {sorted(takes)}"
            raise ConfigError(f"strategy {name} has no option {option!r}", hint=hint)
    ours = {
        "fraction_train": plan.fraction,
        "fraction_evaluate": fraction_evaluate,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": plan.min_devices,
    }
    given = {key: value for key, value in ours.items() if key in takes} | dict(
        plan.strategy_options
    )
    try:
        strategy = made(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy {name}: {error}") from error
    assert isinstance(strategy, Strategy)
    return strategy


def _arguments(made: type[Strategy]) -> set[str]:
    """Return a strategy's arguments; those that pass **kwargs on take their parents' too."""
    found: set[str] = set()
    for each in made.__mro__:
        if "__init__" in vars(each) and each is not object:
            parameters = inspect.signature(vars(each)["__init__"]).parameters
            found |= set(parameters) - {"self", "args", "kwargs"}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break
    return found


def load_server_app(entry: str) -> ServerApp:
    """Return the ServerApp at "module:attribute"."""
    module, _, attribute = entry.partition(":")
    if not module or not attribute:
        raise ConfigError(f'the server app is {entry!r}; expected "module:attribute"')
    found: Any = import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{entry}: there is no {part!r}")
        found = getattr(found, part)
    if not isinstance(found, ServerApp):
        raise ConfigError(f"{entry} is {type(found).__name__}, not a ServerApp")
    return found
