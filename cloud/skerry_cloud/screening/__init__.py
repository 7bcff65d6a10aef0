"""Which replies are fit to be merged: pure, and said in one line for each that is not.

Every stock strategy assumes that all replies of a round look alike, and one that does not would
end the run (FLOWER.md 2.5). So what is not finite, looks unlike the model that was sent or unlike
the others, or is much further from the model than they are, is left out here, by name.
"""

from skerry_cloud.screening.looks import WEIGHTS
from skerry_cloud.screening.norms import measured, own_flaw
from skerry_cloud.screening.rounds import FIT, RoundScreen, flaws

__all__ = ["FIT", "WEIGHTS", "RoundScreen", "flaws", "measured", "own_flaw"]
