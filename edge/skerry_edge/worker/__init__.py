"""Workers: child processes in which the code of others runs, away from the agent.

The agent's side: `pool` (who works on what), `process` (one child and its limits), `processes`
(finding and killing a tree), `output` (what it prints). The child's side: `child`, `sandbox`.
`messages` is what they say to each other.
"""
