"""The fuzz targets, run for a moment from their seeds: no input does more than be refused."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 6


@pytest.mark.parametrize("target", ["records", "bundles", "codecs"])
def test_nothing_crashes_the_decoder(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip(
            "atheris is not installed: it has wheels for Linux x86-64 and Python 3.11, 3.12"
        )
    corpus = tmp_path / "corpus"
    shutil.copytree(HERE / "corpus" / target, corpus)
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / f"target_{target}.py"),
            f"-max_total_time={SECONDS}",
            "-max_len=16384",
            "-rss_limit_mb=1024",
            "-timeout=10",
            f"-artifact_prefix={tmp_path}/",
            str(corpus),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_seeds_are_what_the_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("seeds", HERE / "seeds.py")
    assert spec is not None
    assert spec.loader is not None
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    made = {"records": seeds.records(), "bundles": seeds.bundle(), "codecs": seeds.codecs()}
    for folder, files in made.items():
        for name, data in files.items():
            assert (HERE / "corpus" / folder / name).read_bytes() == data, name
