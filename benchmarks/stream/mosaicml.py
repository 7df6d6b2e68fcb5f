"""Side of mosaicml-streaming: MDS shards and its loader; runs under the peers' Python."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streaming
from streaming.base.util import clean_stale_shared_memory
from torch import Tensor

from benchmarks.stream.contender import Crop, Reading, loader_options
from benchmarks.stream.corpus import SEED, Facts, read_facts, stored_samples

SHUFFLE = "py1e, the default, over blocks of at least 262,144 samples: the whole set"


class CroppedDataset(streaming.StreamingDataset):
    """A StreamingDataset whose samples are cropped and normalised."""

    def __init__(self, *, crop: Crop, **options: Any):
        super().__init__(**options)
        self.crop = crop

    def __getitem__(self, at: Any) -> Any:
        """Returns (uid, mel [T, F])."""
        sample = super().__getitem__(at)
        return self.crop(sample["uid"], sample["mel"])


class MosaicReader:
    """See `benchmarks.stream.contender.Reader`."""

    def __init__(self, reading: Reading, facts: Facts):
        self.reading, self.facts = reading, facts
        self._state: Any = None
        self._loader: Any = None

    def batches(self) -> Iterator[tuple[list[str], Tensor]]:
        """Opens dataset and loader."""
        clean_stale_shared_memory()
        reading, remote = self.reading, self.reading.url.startswith("s3://")
        if remote:
            os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        dataset = CroppedDataset(
            crop=Crop(self.facts),
            remote=reading.url if remote else None,
            local=reading.cache_dir if remote else reading.url,
            shuffle=True,
            shuffle_seed=SEED,
            batch_size=reading.batch,
        )
        options = loader_options(reading.workers)
        self._loader = streaming.StreamingDataLoader(dataset, batch_size=reading.batch, **options)
        if self._state is not None:
            self._loader.load_state_dict(self._state)
        for _ in range(reading.epochs):
            for uids, mel_BTF in self._loader:
                yield list(uids), mel_BTF

    def state(self, batches: int) -> Any:
        """Returns the loader's own state."""
        state = self._loader.state_dict()
        assert state["sample_in_epoch"] == batches * self.reading.batch
        return state

    def restore(self, state: Any) -> None:
        """Loads the state when the loader is made."""
        self._state = state


def open_reader(reading: Reading, facts: Facts) -> MosaicReader:
    """Returns the reader."""
    return MosaicReader(reading, facts)


def convert(corpus: Path, folder: Path) -> None:
    """Writes a corpus as MDS, not compressed, in shards of the same size."""
    config = read_facts(corpus).config
    columns = {"uid": "str", "info": "str", "mel": f"ndarray:{config.dtype}"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=config.shard_bytes) as writer:
        for sample in stored_samples(corpus):
            writer.write(sample)
