"""Front door of the data room: from corpora to verified shards of log-mel spectrograms.

  python -m data scores corpora/scores                 render real scores into labelled audio (no download)
  python -m data build corpora/scores shards/          audio -> log-mel WebDataset shards + manifest, resumable
  python -m data build list.csv shards/ --part 3/8     the same on one of eight machines; --merge 8 at the end
  python -m data verify s3://bucket/shards/train       check every byte against the manifest
  python -m data stats shards/train                    mean, deviation, silence, durations, per-band profile
  python -m data inspect shards/train --out page.html  look at random samples

Locations are plain paths, file:// or s3:// urls. Credentials and endpoint of s3 come from the standard environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or profile, and are never written.
"""

import sys

from pupujepa.front_door import Command, enter

COMMANDS = {
    "scores": Command("data.scores.cli", "render real scores into labelled audio"),
    "build": Command("data.building.command", "turn audio into log-mel shards with a manifest"),
    "verify": Command("data.check.verify", "check shards against their manifest, byte by byte"),
    "stats": Command("data.check.statistics", "statistics of a shard set, as text and PNG"),
    "inspect": Command("data.check.inspection", "random samples of a shard set as one HTML page"),
}

if __name__ == "__main__":
    sys.exit(enter("data", COMMANDS, manual=__doc__))
