"""Inference on the device: the live model behind a local endpoint.

The agent starts `child.py`, a process that holds the runtime; `server.py` answers HTTP by the Open
Inference Protocol, `topic.py` MQTT requests. `predictor.py` is the model with its pre- and
post-processing; `load` below gives it to Python programs. The agent itself imports none of this but
`settings` and `service`.
"""
