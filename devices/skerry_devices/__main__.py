"""`skerry`: parse, call one function, and turn errors into one line and an exit status."""

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from importlib.metadata import version

        print(f"skerry {version('skerry')}")
        return
    from skerry_devices.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
