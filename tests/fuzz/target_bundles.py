"""atheris target: whatever bytes come as a bundle, they are refused or are one, and stay inside."""

import sys

import atheris

with atheris.instrument_imports(include=["skerry_protos"]):
    from skerry_protos import bundles
    from skerry_protos.errors import TrustError


def one_input(data: bytes) -> None:
    """Look into a bundle; what is taken names only files below the folder."""
    try:
        manifest = bundles.inspect(data)
    except TrustError:
        return
    for path in manifest.files:
        assert not path.startswith("/")
        assert ".." not in path.split("/")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
