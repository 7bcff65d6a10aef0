"""Rollouts: a version reaches the fleet in waves, each behind gates on what devices report.

`lifecycle` is the life of a rollout as a table, `plan` what an operator asks for, `judging` decides
from what devices say (values in, a verdict out), `engine` carries it out and survives restarts.
"""
