"""Ranges for int8 from the devices: as good as with their data here, exact, and hard to spoil."""

import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.start import run_export
from skerry_devices.calibrations import bundle_of
from skerry_devices.models import write_npz
from skerry_protos.calibration import FOLDER, PLAN, Plan, Spreads, read_plan
from skerry_protos.errors import SkerryError
from skerry_protos.packing import read_artefact
from skerry_protos.tensors import Tensor

from tests.cloud.models.apps import write_app
from tests.fleet import SmallFleet, small_fleet

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="needs skerry-cloud[export]"
    ),
    pytest.mark.timeout(300),
]
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="needs skerry-cloud[litert]"
)
DEVICES = ("low", "middle", "high")
MORE = """
SHARES = {"low": (0, 4), "middle": (4, 7), "high": (7, 10)}


def share(name):
    first, end = SHARES[name]
    return X[:1500][(Y[:1500] >= first) & (Y[:1500] < end)]


def device_calibration(device):
    kind, _, name = device.id.rpartition("-")
    return {"": share, **BAD}[kind](name)


def nan(name):
    return np.where(share(name) > 0.9, np.float32("nan"), share(name))


def lying(change):
    # What the device's own worker says is changed once, as its owner could.
    def lie(name):
        from skerry_edge import calibrating
        honest = calibrating.answer

        def answer(app, plan, arrays):
            calibrating.answer = honest
            made = honest(app, plan, arrays)
            group = {key: one.numpy().copy() for key, one in made.arrays["onnx"].items()}
            change(group, made)
            from skerry_protos.tensors import Tensor
            made.arrays["onnx"] = {key: Tensor.of(one) for key, one in group.items()}
            return made

        calibrating.answer = answer
        return share(name)

    return lie


def infinite(group, made):
    group["high"][1] = np.inf


def turned(group, made):
    group["low"], group["high"] = group["high"], group["low"]


def many(group, made):
    group["bins"][2] *= 1000


def wide(group, made):
    # In itself without a flaw: every number a million times as large.
    group["low"] *= 2.0**20
    group["high"] *= 2.0**20
    group["exponents"] += 20


def claiming(group, made):
    made.metrics["metrics"]["num-examples"] = 10**9


BAD = {
    "empty": lambda name: X[:0],
    "few": lambda name: X[:7],
    "constant": lambda name: X[:50] * 0,
    "nan": nan,
    "shape": lambda name: X[:50, :, :4],
    "infinite": lying(infinite),
    "turned": lying(turned),
    "many": lying(many),
    "wide": lying(wide),
    "claiming": lying(claiming),
}
"""
WHY = {
    "empty": ("failure", "there are 0 examples to calibrate with; at least 8 count"),
    "few": ("failure", "there are 7 examples"),
    "constant": ("failure", "this device's data are constant: all of 'input' is 0.0"),
    "nan": ("failure", "input 'input' of this device's data has NaN or infinity"),
    "shape": ("failure", "the model takes float32 [1, 8, 8]"),
    "infinite": ("refused", "its range is not finite"),
    "turned": ("refused", "its range is"),
    "many": ("refused", "its histogram has counts that cannot be"),
    "wide": ("refused", "times what it does on the other devices"),
    "claiming": ("refused", "its number of examples is 1000000000; expected 8 to 512"),
}


def request_of(folder: Path, **options: Any) -> Request:
    wish: dict[str, Any] = {"to": ("onnx",), "allow_slower": True, **options}
    return Request(name="digits", folder=str(folder), module="app", out=str(folder / "out"), **wish)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an app's folder; beside it lies the bundle that devices calibrate with."""
    folder = write_app(tmp_path_factory.mktemp("calibration") / "app", MORE)
    bundle_of(request_of(folder), folder.parent / "bundle", 120, lambda _line: None)
    return folder


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


def pooled(source: Path) -> tuple[Plan, Spreads, int]:
    """Return what one device with all the data would have said."""
    from skerry_edge import calibrating

    bundle = source.parent / "bundle"
    plan = read_plan((bundle / FOLDER / PLAN).read_bytes())
    spec = importlib.util.spec_from_file_location("pooled", source / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    shares = [calibrating.some((app.share(name),), 512) for name in DEVICES]
    every = Spreads.empty(len(plan.graphs["onnx"].tensors))
    for arrays in shares:
        # One call of the runtime per device: its sums depend on the size of the batch.
        made = calibrating.answer(bundle, plan, arrays)
        found = Spreads.parse(made.arrays["onnx"], len(plan.graphs["onnx"].tensors))
        every.merge(found)
    return plan, every, sum(len(each[0]) for each in shares)


async def test_ranges_from_devices_are_as_good_as_from_their_data(
    fleet: SmallFleet, source: Path, tmp_path: Path
) -> None:
    run = await fleet.train(source.parent / "bundle")
    ranges = tmp_path / "ranges.npz"
    assert run.model is not None
    path = fleet.blobs.path(run.model)
    assert path is not None
    write_npz(path, ranges)
    plan, wanted, examples = pooled(source)
    with np.load(ranges) as found:
        about = json.loads(found["about"].tobytes())
        tensors = {key[5:]: Tensor.of(found[key]) for key in found.files if "onnx." in key}
    merged = Spreads.parse(tensors, len(wanted.low))
    assert about["of"] == {"onnx": {"devices": 3, "examples": examples}}
    for name in ("low", "high", "exponents", "bins"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(wanted, name), name)
    names = [one.name for one in plan.graphs["onnx"].tensors]
    assert merged.low[names.index("input")] == 0
    assert merged.high[names.index("input")] == 1

    (here,) = run_export(request_of(source), timeout_s=200, on_line=lambda _line: None)
    asked = request_of(source, ranges=str(ranges), ranges_run=str(run.id))
    (made,) = run_export(asked, timeout_s=200, on_line=lambda _line: None)
    assert static(here)["value"] > 0.9
    assert abs(static(made)["value"] - static(here)["value"]) <= 0.005
    assert static(made)["bytes"] == static(here)["bytes"]
    lineage = read_artefact(Path(made["folder"])).lineage
    if made["recipe"] == "static":
        assert lineage["calibration"] == "federated"
        assert lineage["calibrated_by"] == by_three(run.id, examples)
    else:  # so small a model is as fast in float, and smaller without scales
        assert lineage["calibration"] == ""
        assert "calibrated_by" not in lineage


@pytest.mark.slow
@needs_litert
async def test_litert_takes_the_devices_ranges_too(fleet: SmallFleet, tmp_path: Path) -> None:
    folder = write_app(tmp_path / "app", MORE)
    both = request_of(folder, to=("onnx", "litert"))
    bundle_of(both, tmp_path / "bundle", 250, lambda _line: None)
    run = await fleet.train(tmp_path / "bundle")
    ranges = tmp_path / "ranges.npz"
    assert run.model is not None
    path = fleet.blobs.path(run.model)
    assert path is not None
    write_npz(path, ranges)
    wanted = {"to": ("litert",), "ranges_run": str(run.id)}
    (here,) = run_export(request_of(folder, to=("litert",)), timeout_s=250, on_line=print)
    asked = request_of(folder, ranges=str(ranges), ranges_by="mse", **wanted)
    (made,) = run_export(asked, timeout_s=250, on_line=print)
    assert static(made)["value"] >= static(here)["value"] - 0.005
    assert static(made)["agreement"] >= 0.98
    lineage = read_artefact(Path(made["folder"])).lineage
    assert made["recipe"] == "static"
    assert lineage["calibration"] == "federated"
    assert lineage["calibrated_by"] == {**by_three(run.id, 3 * 128), "ranges": "mse"}


def static(made: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in made["front"] if row["recipe"] == "static")


def by_three(run: str, examples: int) -> dict[str, Any]:
    return {"run": run, "devices": 3, "examples": examples, "ranges": "minmax"}


async def test_a_device_that_cannot_or_lies_is_named_and_left_out(
    tmp_path: Path, source: Path
) -> None:
    bad = {kind: f"{kind}-{DEVICES[place % 3]}" for place, kind in enumerate(WHY)}
    async with small_fleet(tmp_path, "memory", (*DEVICES, *bad.values())) as fleet:
        run = await fleet.train(source.parent / "bundle")
        found = {
            event["device"]: (event["kind"], event["data"]["why"])
            for event in await fleet.events(run, "refused", "failure", "late")
        }
        assert set(found) == set(bad.values())
        for kind, device in bad.items():
            assert found[device][0] == WHY[kind][0], found[device]
            assert WHY[kind][1] in found[device][1], found[device]
            assert "\n" not in found[device][1]
        _, wanted, examples = pooled(source)
        group = fleet.model(run).arrays["calibration"]
        about = json.loads(group["about"].numpy().tobytes())
        assert about["of"] == {"onnx": {"devices": 3, "examples": examples}}
        np.testing.assert_array_equal(group["onnx.bins"].numpy(), wanted.bins)
        metrics = await fleet.metrics(run)
        assert metrics[1, "query", "low", "num-examples"] == 512


async def test_where_nobody_has_data_the_run_fails_with_the_reason(
    tmp_path: Path, source: Path
) -> None:
    async with small_fleet(tmp_path, "memory", ("empty-low", "constant-low")) as fleet:
        run = await fleet.ended(await fleet.begin(source.parent / "bundle"))
        assert run.state == "failed"
        assert "no device gave ranges that can be used: " in run.why


def test_ranges_of_another_model_are_refused(source: Path, tmp_path: Path) -> None:
    plan, wanted, _ = pooled(source)
    about = {"plan": {**plan.to_json(), "model": "0" * 64}, "of": {}}
    about["of"] = {"onnx": {"devices": 1, "examples": 9}}
    arrays: dict[str, Any] = {f"onnx.{key}": one.numpy() for key, one in wanted.tensors().items()}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(tmp_path / "ranges.npz", about=text, **arrays)
    asked = request_of(source, ranges=str(tmp_path / "ranges.npz"))
    with pytest.raises(SkerryError, match="the calibration is of another model"):
        run_export(asked, timeout_s=200, on_line=lambda _line: None)


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.zeros(3)},
        {"about": np.frombuffer(b"{}", np.uint8)},
        {"about": np.frombuffer(b'{"plan": {}, "of": {}}', np.uint8)},
        {"about": np.frombuffer(b"\xff{", np.uint8)},
    ],
)
def test_a_file_that_holds_no_ranges_is_told(tmp_path: Path, arrays: dict[str, Any]) -> None:
    from skerry_cloud.models.export.ranges import read as read_ranges

    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(SkerryError, match="holds no calibration") as refused:
        read_ranges(str(tmp_path / "weights.npz"), "minmax")
    assert "--calibrate" in refused.value.hint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantize": "dynamic"}, "has no use with --quantize dynamic"),
        ({"quantize": "int8-qat"}, "--quantize int8-qat changes it first"),
        ({"prune": 0.3}, "--prune changes it first"),
        ({"distil": True}, "--distil changes it first"),
        ({"calibration": "/some.npz"}, "not from both"),
        ({"ranges_by": "guess"}, "no ranges by 'guess'"),
    ],
)
def test_what_ranges_cannot_be_used_for_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SkerryError, match=told):
        Request(name="m", folder="/f", module="app", out="/o", ranges="/r.npz", **options)
