"""Completing ids in the shell: asks the coordinator, briefly, and stays silent when it cannot."""

from collections.abc import Callable

from skerry_protos.errors import SkerryError

TIMEOUT_S = 2.0

Completer = Callable[[str], list[tuple[str, str]]]


def ids_of(what: str, said: str) -> Completer:
    """Return what completes the ids of `what` ("devices"), each shown with its field `said`."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from skerry_devices import contexts
        from skerry_devices.client import Client, at

        try:
            _, context = contexts.chosen()
            with Client(context, timeout_s=TIMEOUT_S) as client:
                items = client.items(at(what))
        except (SkerryError, OSError):
            return []  # a message here would end up on the command line
        return [
            (str(one["id"]), str(one.get(said, "")))
            for one in items
            if str(one["id"]).startswith(incomplete)
        ]

    return complete
