"""Distillation, pruning and training for int8: what they make of a model, in this process."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torch_pruning") is None, reason="needs skerry-cloud[export]"
    ),
    pytest.mark.filterwarnings("ignore"),  # of torch and of what it compiles with
]

from skerry_cloud.models.export import DataError, ExportError  # noqa: E402
from skerry_cloud.models.export.request import Request  # noqa: E402
from skerry_protos.errors import SkerryError  # noqa: E402

from tests.cloud.models.apps import HEAD  # noqa: E402

STUDENT = """
def student():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
"""


def request(**options: Any) -> Request:
    """Return a request; nothing is written by these tests."""
    return Request(name="m", folder="/nowhere", module="app", out="/nowhere", **options)


@pytest.fixture(scope="module")
def subject() -> Any:
    """A trained network and its data."""
    from skerry_cloud.models.export.source import Labelled, Subject

    app: dict[str, Any] = {}
    exec(HEAD + STUDENT, app)  # as load imports it, without a file
    inputs, labels = app["held_out"]()
    x, y = app["training"]()
    import torch

    return Subject(
        name="m",
        model=app["model"](),
        example=(torch.from_numpy(x[:2]),),
        held_out=Labelled(inputs=(inputs,), labels=labels),
        calibration=(x,),
        training=Labelled(inputs=(x,), labels=y),
        student=app["student"],
        metric=None,
        metric_name="metric",
        labels=(),
        preprocessing=(),
        app=Path("/nowhere"),
    )


def parameters(model: Any) -> int:
    """Return how many numbers a model has."""
    return sum(each.numel() for each in model.parameters())


def accuracy(subject: Any, model: Any) -> float:
    """Return a model's accuracy on the held-out part."""
    from skerry_cloud.models.export.measure import judge_of, run_model

    judge = judge_of(subject)
    return judge.judge(run_model(model, subject.held_out.inputs)).value


def test_pruning_takes_channels_out_and_training_mends_what_is_left(subject: Any) -> None:
    from skerry_cloud.models.export.prune import without_channels

    plain = accuracy(subject, subject.model)
    made = without_channels(
        request(prune=0.5, epochs=10), subject, subject.model, (subject.training.inputs[0],)
    )
    assert parameters(made) < 0.5 * parameters(subject.model)
    first, *_, last = made.children()
    assert first.out_channels == 8
    assert last.out_features == 10
    assert accuracy(subject, made) >= plain - 0.03
    assert accuracy(subject, subject.model) == plain  # the teacher is as it was


def test_a_student_learns_the_models_answers_without_labels(subject: Any) -> None:
    from skerry_cloud.models.export.distil import into_student

    unlabelled = replace(subject, training=None)
    made = into_student(request(distil=True, epochs=40), unlabelled, subject.calibration)
    assert parameters(made) < 0.2 * parameters(subject.model)
    assert accuracy(subject, made) > 0.85


def test_training_for_int8_gives_weights_that_survive_rounding(subject: Any) -> None:
    import torch
    from skerry_cloud.models.export.qat import trained

    made = trained(
        request(quantize="int8-qat", epochs=2), subject, subject.model, subject.calibration
    )
    assert {n for n, _ in made.named_parameters()} == {
        n for n, _ in subject.model.named_parameters()
    }
    assert accuracy(subject, made) >= accuracy(subject, subject.model) - 0.02
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                scale = layer.weight.abs().amax() / 127
                layer.weight.copy_(torch.round(layer.weight / scale) * scale)
    assert accuracy(subject, made) >= accuracy(subject, subject.model) - 0.02


def test_what_cannot_be_lightened_is_told(subject: Any) -> None:
    from skerry_cloud.models.export.distil import into_student
    from skerry_cloud.models.export.prune import without_channels
    from skerry_cloud.models.export.qat import trained
    from torch import nn

    bare = replace(subject, training=None)
    with pytest.raises(DataError, match="--prune needs data"):
        without_channels(request(prune=0.5), bare, subject.model, None)
    with pytest.raises(ExportError, match="the student answers"):
        into_student(request(distil=True), replace(subject, student=nn.Flatten), None)
    plain = replace(subject, model=nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(SkerryError, match="neither convolutions nor linear"):
        trained(request(quantize="int8-qat"), plain, plain.model, None)
