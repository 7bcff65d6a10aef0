"""Makes a model lighter or sturdier before it is converted: distillation, pruning, QAT."""

from collections.abc import Callable
from dataclasses import replace

from skerry_cloud.models.export.measure import Judge
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.source import Arrays, Subject


def lighten(
    request: Request,
    subject: Subject,
    judge: Judge,
    calibration: Arrays | None,
    say: Callable[[str], None],
) -> Subject:
    """Return the subject with the model that the request's options make of it."""
    if not (request.distil or request.prune or request.quantize == "int8-qat"):
        return subject
    from skerry_cloud.models.export.distil import into_student, shown
    from skerry_cloud.models.export.prune import without_channels
    from skerry_cloud.models.export.qat import trained

    teacher = model = subject.model
    if request.distil:
        model = into_student(request, subject, calibration)
        say(f"distilled: {shown(model, judge)}")
    if request.prune:
        model = without_channels(request, replace(subject, model=model), teacher, calibration)
        say(f"pruned: {shown(model, judge)}")
    if request.quantize == "int8-qat":
        model = trained(request, replace(subject, model=model), teacher, calibration)
        say(f"trained for int8: {shown(model, judge)}")
    return replace(subject, model=model)
