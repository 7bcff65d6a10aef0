"""The whole system in one process, in virtual time, one seed after the other.

The coordinator (registry, runs, store, the session side of a fleet) and the agents (ledger, inbox,
outbox, route, session) are the real ones. Only the leaves are replaced: the wire (network.py), the
disk's and the database's latency (loop.py, shore.py), a device's worker (devices.py), and the
process and threads of a run's server side (threads.py, server.py). What happens when, and what goes
wrong, follows from the seed alone (scenario.py); what must hold whatever happens is in
invariants.py. Start in story.py; docs/simulator.md is the manual.
"""
