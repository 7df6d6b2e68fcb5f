from pupujepa.encoder import Encoder
from pupujepa.model import ModelConfig, PupuJEPA
from pupujepa.weights import load

__version__: str
__all__ = ["Encoder", "ModelConfig", "PupuJEPA", "__version__", "load"]
