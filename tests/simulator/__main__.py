"""python -m tests.simulator [--seeds N] [--first N] [--seed N]: see docs/simulator.md."""

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts are iterated, and must be alike
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulator", *sys.argv[1:]])

from tests.simulator.seeds import main

sys.exit(main())
