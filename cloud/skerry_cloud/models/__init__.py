"""Models: what there is, who signed it, and which device is to serve what.

`registry` knows models, versions and artefacts; `repository` keeps the TUF repository whose root,
targets and channels are signed offline (`signing`, on an operator's machine) and whose snapshot and
timestamp the coordinator signs; `director` says to each device what it is to serve, out of what the
offline keys have signed.
"""
