"""`skerry models`: from a trained model to files that devices run."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from skerry_devices.cli import group
from skerry_devices.commands import model_registry
from skerry_devices.output import Column, Format, Output, show_list, shown_path, size
from skerry_devices.waiting import Timeout

app = group("Export, import, sign, compare and retire models.")

EXPORT_COLUMNS = (
    Column("runtime", lambda e: str(e["runtime"])),
    Column("recipe", lambda e: str(e["recipe"])),
    Column("quality", lambda e: f"{e['figures']['metric']} {e['figures']['value']:.4f}"),
    Column("float", lambda e: f"{e['figures']['float_value']:.4f}"),
    Column("agreement", lambda e: f"{e['figures']['agreement']:.2%}"),
    Column("size", lambda e: _of(e, "bytes", "float_bytes", size)),
    Column("latency", lambda e: _of(e, "latency_s", "float_latency_s", _micro)),
)


@app.command("export")
def export(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE", help="A run's id, an app's folder, or a .py file."),
    ],
    to: Annotated[str, typer.Option(help="Runtimes: onnx, litert.")] = "onnx,litert",
    quantize: Annotated[
        str, typer.Option("--quantize", "-q", help="none, dynamic, int8, int8-qat, fp16 or int4.")
    ] = "int8",
    out: Annotated[Path, typer.Option("--out", help="The folder for the artefacts.")] = Path(
        "exported"
    ),
    name: Annotated[str, typer.Option(help="The model's name; else the app's.")] = "",
    module: Annotated[
        str, typer.Option(help="The module with model(); else as skerry.toml says, or export.py.")
    ] = "",
    weights: Annotated[
        Path | None, typer.Option(help="The weights (.npz) for a folder or file.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of accuracy that quantization may lose.")
    ] = 1.0,
    calibration: Annotated[
        Path | None, typer.Option(help="Inputs (.npz) to take the ranges from; else the app's.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Inputs and labels (.npz) to judge by; else the app's.")
    ] = None,
    prune: Annotated[
        float, typer.Option(help="Share of the channels to take out first, as 0.3.")
    ] = 0.0,
    distil: Annotated[
        bool, typer.Option("--distil", help="Train the app's student() from the model first.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the data of what trains.")] = 5,
    front: Annotated[
        bool, typer.Option("--front", help="Keep every file that none beats, not only the best.")
    ] = False,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Take a file that is slower than float here.")
    ] = False,
    profile: Annotated[
        list[str] | None, typer.Option(help="Bind the artefacts to this device profile.")
    ] = None,
    unsure_risk: Annotated[
        float,
        typer.Option(
            help="Share of wrong answers, as 0.02, up to which the device keeps its own; those it "
            "is too unsure of for that go to a bigger model. 0: no threshold."
        ),
    ] = 0.0,
    calibrate: Annotated[
        str,
        typer.Option(
            metavar="devices|run:ID",
            help="Take int8's ranges from the devices' own data: ask them now, or use a run's.",
        ),
    ] = "",
    ranges: Annotated[
        str, typer.Option(help="How ranges follow from what devices saw: minmax, percentile, mse.")
    ] = "minmax",
    select: Annotated[
        str, typer.Option("--select", "-l", help="The devices to calibrate on; else all.")
    ] = "",
    timeout: Timeout = "30m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Make checked ONNX and LiteRT files of a model, the best recipe found by measuring."""
    from skerry_cloud.models.export.request import Request, absolute
    from skerry_cloud.models.export.start import run_export

    from skerry_devices.calibrations import Wish, with_ranges
    from skerry_devices.client import connect
    from skerry_devices.exports import find_source

    with find_source(source, module, weights) as found:
        request = Request(
            name=name or found.name,
            folder=str(found.folder),
            module=found.module,
            out=absolute(out),
            to=tuple(each.strip() for each in to.split(",") if each.strip()),
            quantize=quantize,
            max_drop=max_drop,
            weights=absolute(found.weights),
            calibration=absolute(calibration),
            held_out=absolute(held_out),
            prune=prune,
            distil=distil,
            epochs=epochs,
            front=front,
            allow_slower=allow_slower,
            unsure_risk=unsure_risk,
            profiles=tuple(profile or ()),
            processors=processors(profile or []),
            lineage=found.lineage,
            ranges_by=ranges,
        )
        with tempfile.TemporaryDirectory(prefix="skerry-calibration-") as folder:
            if calibrate:
                wish = Wish(said=calibrate, selector=select, timeout_s=timeout)
                with connect() as client:
                    request = with_ranges(client, request, wish, Path(folder), _say)
            made = run_export(request, timeout_s=timeout, on_line=_say)
    show_list(made, EXPORT_COLUMNS, output, empty="Nothing was exported.")
    if output is Format.TABLE:
        for each in made:
            print("\n" + "\n  ".join(_more(each)))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def processors(wanted: list[str]) -> dict[str, Any]:
    """Return what the profiles say of their processors, for estimates; raise for one unknown."""
    from skerry_cloud.models.export.request import Processor
    from skerry_edge.profile import find_profile, profiles

    return {
        found.name: Processor(
            arch=found.hardware.arch,
            cpu=found.hardware.cpu,
            clock_mhz=found.hardware.clock_mhz,
            idle_w=found.power.idle_w,
            busy_w=found.power.busy_w,
        )
        for found in map(find_profile, wanted or sorted(profiles()))
    }


def _more(item: Any) -> list[str]:
    """Return an artefact's file, and lines with what its row has no room for."""
    figures = item["figures"]
    lines = [
        shown_path(Path(item["artefact"])),
        f"{figures['macs'] / 1e6:.3g} M multiplications, largest deviation of an output "
        f"{figures['max_deviation']:.3g}",
    ]
    if there := figures["estimated_latency_s"]:
        lines.append(f"estimated: {_estimated(there)}")
    if "unsure_below" in figures:
        lines.append(
            f"unsure below a confidence of {figures['unsure_below']:.3f}: "
            f"{figures['unsure_kept']:.1%} of the answers stay on the device, at most "
            f"{figures['unsure_bound']:.1%} of them wrong ({figures['unsure_wrong']:.1%} here)"
        )
    return lines


def _of(item: Any, key: str, whole: str, shown: Any) -> str:
    """Return a figure, and its share of the float file's."""
    here, there = item["figures"][key], item["figures"][whole]
    return f"{shown(here)} ({here / there:.2f}x)"


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


def _estimated(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {_micro(each)}" for name, each in sorted(seconds.items()))


model_registry.add_to(app)
