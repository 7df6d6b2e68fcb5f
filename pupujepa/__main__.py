"""Front door of the library: embeddings, attention maps and model sizes.

python -m pupujepa info tiny                                        parameters, operations, memory
python -m pupujepa embed runs/demo/export songs/ --out vectors/     one row per audio file
python -m pupujepa attend runs/demo/export song.flac --out a.html   the predictor's attention
"""

import sys

from pupujepa.front_door import Command, enter

COMMANDS = {
    "embed": Command("pupujepa.embedding.embed", "embed audio files or folders: npz or parquet"),
    "attend": Command("pupujepa.attention.attend", "draw the predictor's attention from a masked region"),
    "info": Command("pupujepa.cost.describe", "show architecture, parameters, FLOPs and memory of a model"),
}

if __name__ == "__main__":
    sys.exit(enter("pupujepa", COMMANDS, manual=__doc__))
