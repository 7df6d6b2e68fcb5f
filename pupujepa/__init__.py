"""PupuJEPA: self-supervised music representations from 2-D log-mel spectrograms (arXiv 2606.25713).

The four names below are what most users need. They are resolved on first use, so that a command's `--help` and the pure
integer modules of the other rooms do not pay for importing torch. `__init__.pyi` tells type checkers what they are.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Encoder", "ModelConfig", "PupuJEPA", "__version__", "load"]

_OWNERS = {
    "Encoder": "pupujepa.embedding.encoder",
    "ModelConfig": "pupujepa.model.model",
    "PupuJEPA": "pupujepa.model.model",
    "load": "pupujepa.weights.weights",
}


def __getattr__(name: str) -> Any:
    if name in _OWNERS:
        return getattr(import_module(_OWNERS[name]), name)
    raise AttributeError(f"module 'pupujepa' has no attribute {name!r}")
