"""Front door of the sweeps room: ablations as data, trials as ordinary runs, intervals.

python -m sweeps run sweeps/ablations/quick.yaml --shards shards/train --corpus corpora/scores --out runs/sweep
python -m sweeps run sweeps/ablations/quick.yaml ... --resume        resumes a sweep that was stopped
python -m sweeps report runs/sweep                                  writes the table and the page
"""

import sys

from pupujepa.front_door import Command, enter

COMMANDS = {
    "run": Command("sweeps.run", "train and probe every trial of an ablation on Ray Tune"),
    "report": Command("sweeps.report", "the table and the page of a sweep"),
}

if __name__ == "__main__":
    sys.exit(enter("sweeps", COMMANDS, manual=__doc__))
