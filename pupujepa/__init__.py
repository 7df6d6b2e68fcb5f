"""PupuJEPA: self-supervised music representations from 2-D log-mel spectrograms (arXiv 2606.25713).

The four public names are resolved on first use: `--help` and modules without tensors then start without importing
torch. `__init__.pyi` declares them for type checkers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Encoder", "ModelConfig", "PupuJEPA", "__version__", "load"]

_OWNERS = {  # a new name here needs its line in __init__.pyi
    "Encoder": "pupujepa.embedding.encoder",
    "ModelConfig": "pupujepa.model.model",
    "PupuJEPA": "pupujepa.model.model",
    "load": "pupujepa.weights.weights",
}


def __getattr__(name: str) -> Any:  # Python calls it for names that the module does not have (PEP 562)
    if name in _OWNERS:
        return getattr(import_module(_OWNERS[name]), name)
    raise AttributeError(f"module 'pupujepa' has no attribute {name!r}")
