"""The operators' HTTP API: what the CLI and other programs ask of the coordinator.

Start at app.py. auth.py says who may call what; each other module holds the routes of one noun.
"""
