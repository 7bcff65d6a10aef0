"""What a policy's run begins with: the model in service on the devices that drift."""

from collections import Counter
from collections.abc import Collection

import sqlalchemy as sa
from skerry_protos.artefacts import TargetPath

from skerry_cloud.runs.initial import flaw
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import runs as kept_runs


def in_service(connection: sa.Connection, model: str, devices: Collection[str]) -> tuple[str, str]:
    """Return the run whose final model most of these devices serve, and of which version it is.

    Without one: nothing, and why.
    """
    served = Counter(
        TargetPath.parse(report.serving or report.target).version
        for report in kept_models.reports(connection, model=model)
        if report.device in devices and (report.serving or report.target)
    )
    if not served:
        return "", "no device says which version it serves"
    # The newest of those that as many serve.
    number = max(served, key=lambda each: (served[each], each))
    name = f"{model}@{number}"
    version = kept_models.find(connection, model, number)
    if version is None:
        return "", f"{name} is not in the registry"
    run = str(version.lineage.get("run") or "")
    if not run:
        return "", f"the lineage of {name} names no run"
    found = kept_runs.find(connection, run)
    if (why := flaw(found, run)) is not None or found is None:
        return "", f"{name} is of run {run[:80]!r}, and {why}"
    return str(found.id), f"of which {name} is"
