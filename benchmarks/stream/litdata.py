"""Side of litdata in the streaming benchmark: its chunks and loader; runs under the peers' Python."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
from litdata.streaming import downloader
from torch import Tensor

from benchmarks.stream.contender import Crop, Reading, loader_options
from benchmarks.stream.corpus import SEED, Facts, read_facts, stored_samples

SHUFFLE = "its FullShuffle: chunks divided among workers and shuffled, samples shuffled within a chunk"


class LitdataReader:
    """See `benchmarks.stream.contender.Reader`."""

    def __init__(self, reading: Reading, facts: Facts):
        self.reading, self.facts = reading, facts
        self._state: Any = None
        self._loader: Any = None

    def batches(self) -> Iterator[tuple[list[str], Tensor]]:
        """Opens dataset and loader."""
        reading = self.reading
        remote = reading.url.startswith("s3://")
        if remote:
            # its client refuses plain http, and there is no option for that
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
        dataset = litdata.StreamingDataset(
            reading.url,
            cache_dir=reading.cache_dir if remote else None,
            shuffle=True,
            drop_last=False,
            seed=SEED,
            storage_options={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if remote else None,
            transform=partial(_cropped, crop=Crop(self.facts)),
        )
        options = loader_options(reading.workers)
        self._loader = litdata.StreamingDataLoader(dataset, batch_size=reading.batch, **options)
        if self._state is not None:
            self._loader.load_state_dict(self._state)
        for _ in range(reading.epochs):
            for uids, mel_BTF in self._loader:
                yield list(uids), mel_BTF

    def state(self, batches: int) -> Any:
        """Returns the loader's own state."""
        return self._loader.state_dict()

    def restore(self, state: Any) -> None:
        """Loads the state when the loader is made."""
        self._state = state


def open_reader(reading: Reading, facts: Facts) -> LitdataReader:
    """Returns the reader."""
    return LitdataReader(reading, facts)


def convert(corpus: Path, folder: Path) -> None:
    """Writes a corpus as chunks, not compressed, of the same size."""
    from litdata.streaming.writer import BinaryWriter

    config = read_facts(corpus).config
    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_bytes=config.shard_bytes)
    for number, sample in enumerate(stored_samples(corpus)):
        writer.add_item(number, sample)
    writer.done()
    writer.merge()


def _cropped(sample: dict[str, Any], *, crop: Crop) -> tuple[str, Tensor]:
    return crop(sample["uid"], sample["mel"])
