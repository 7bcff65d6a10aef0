"""`skerry doctor`: what is wrong, and what to do about it."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from skerry_devices.cli import single
from skerry_devices.output import Format

app = single()


@app.command()
def doctor(
    output: Annotated[
        Format, typer.Option("--output", "-o", help="table, json or jsonl.")
    ] = Format.TABLE,
) -> None:
    """Check this machine, the context and the coordinator; the status is 1 when a check fails."""
    from skerry_devices.doctor import Verdict, examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if output is Format.JSONL:
            print(json.dumps(asdict(finding)), flush=True)
        elif output is Format.TABLE:
            print(f"{finding.verdict:<5} {finding.check:<20} {finding.says}", flush=True)
            if finding.hint:
                print(f"{'':<26} → {finding.hint}")
    if output is Format.JSON:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)
