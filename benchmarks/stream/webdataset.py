"""Side of webdataset in the streaming benchmark: its own pipeline over our tars."""

import io
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import numpy as np
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.stream.contender import Crop, Reading, loader_options
from benchmarks.stream.corpus import SEED, Facts
from data.store.store import open_store

SHUFFLE = "shards shuffled, divided among workers, then a buffer of as many samples as 4 shards hold in each worker"
READ_AHEAD_BYTES = 4 << 20


class WebdatasetReader:
    """See `benchmarks.stream.contender.Reader`."""

    def __init__(self, reading: Reading, facts: Facts):
        self.reading, self.facts = reading, facts
        self._skip = 0
        # it cannot read s3 itself; the client's stream behind a large buffer is the fastest way that we found
        webdataset.gopen_schemes["s3"] = _s3_stream

    def batches(self) -> Iterator[tuple[list[str], Tensor]]:
        """Opens the pipeline; to resume, it reads from the start and discards."""
        store = open_store(self.reading.url)
        urls = [store.locate(name) for name in store.list() if name.endswith(".tar")]
        window = 4 * -(-self.facts.config.samples // len(urls))
        dataset = (
            webdataset.WebDataset(urls, shardshuffle=len(urls), detshuffle=True, seed=SEED, empty_check=False)
            .shuffle(window, initial=window)
            .map(partial(_cropped, crop=Crop(self.facts)))
        )
        loader = DataLoader(dataset, batch_size=self.reading.batch, **loader_options(self.reading.workers))
        skip = self._skip
        for _ in range(self.reading.epochs):
            for uids, mel_BTF in loader:
                if skip:
                    skip -= 1
                    continue
                yield list(uids), mel_BTF

    def state(self, batches: int) -> Any:
        """Returns the number of batches: there is no other state."""
        return batches

    def restore(self, state: Any) -> None:
        """Makes `batches` discard this many batches."""
        self._skip = state


def open_reader(reading: Reading, facts: Facts) -> WebdatasetReader:
    """Returns the reader."""
    return WebdatasetReader(reading, facts)


def _cropped(sample: dict[str, Any], *, crop: Crop) -> tuple[str, Tensor]:
    # the info stays undecoded: nothing reads it
    return crop(sample["__key__"], np.load(io.BytesIO(sample["mel.npy"])))


def _s3_stream(url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> io.BufferedReader:
    parts = urlsplit(url)
    body = (
        botocore.session.get_session()
        .create_client("s3")
        .get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))["Body"]
    )
    return io.BufferedReader(body, READ_AHEAD_BYTES)
