"""From a trained torch model to checked files for devices: ONNX and LiteRT, quantized.

Start at `flow.export`. The app's code (its model) is imported by `source`, so all of this runs in a
process of its own: `child` is that process, `start` starts it. Nothing here is imported by the
coordinator, and torch, onnx and litert only by the modules that need them.
"""

from skerry_protos.errors import ConfigError, SkerryError


class ExportError(SkerryError):
    """The model cannot be exported; the message names the layer, the op or the shape."""

    code = "export"
    exit_code = 8


class QualityError(SkerryError):
    """What was exported is worse than allowed; the message has the figures."""

    code = "max-drop"
    exit_code = 8


class DataError(ConfigError):
    """The calibration or held-out data cannot be used."""

    code = "data"
