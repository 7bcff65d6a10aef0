"""What operators let the coordinator do by itself: begin a run when a model's inputs have drifted.

`policy` is what was asked and when it applies; `engine` looks and begins runs.
"""

from skerry_cloud.policies.engine import Policies
from skerry_cloud.policies.policy import Policy

__all__ = ["Policies", "Policy"]
