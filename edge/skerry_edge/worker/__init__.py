"""Workers: child processes in which the code of others runs, away from the agent.

The agent's side: `pool` (who works on what), `process` (one child and its limits), `processes`
(finding and killing a tree), `output` (what it prints), `warmth` and `zygotes` (where fresh ones
come from). The child's side: `child`, `sandbox`, `zygote`.
`messages` is what they say to each other.
"""
