from pupujepa.embedding.encoder import Encoder
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.weights.weights import load

__version__: str
__all__ = ["Encoder", "ModelConfig", "PupuJEPA", "__version__", "load"]
