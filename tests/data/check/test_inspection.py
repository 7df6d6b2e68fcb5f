"""The page of samples: self-contained, drawn by seed, and safe for any track name."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from data.__main__ import COMMANDS
from data.check.inspection import Drawn, draw_samples, samples_page
from data.shards.manifest import read_manifest
from pupujepa.front_door import enter
from tests.data.shardsets import build_shard_set, make_mel


class Links(HTMLParser):
    """Collects every address that a page refers to, and its tags."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """A set of 24 samples."""
    build_shard_set(str(tmp_path / "train"))
    return str(tmp_path / "train")


def test_samples_are_drawn_by_seed_without_repetition(shards: str):
    """The same seed draws the same samples, another seed others; a count above the set draws all once, unchanged."""
    uids = {seed: [d.info["uid"] for d in draw_samples(shards, count=8, seed=seed)[1]] for seed in (0, 1)}
    assert uids[0] == [d.info["uid"] for d in draw_samples(shards, count=8, seed=0)[1]]
    assert uids[0] != uids[1]
    manifest, everything = draw_samples(shards, count=100, seed=0)
    assert sorted(d.info["uid"] for d in everything) == sorted(f"track{n}-0000" for n in range(manifest.samples))
    for drawn in everything:
        number = int(drawn.info["track"].removeprefix("track"))
        np.testing.assert_allclose(drawn.mel_TF, make_mel(number, len(drawn.mel_TF)), atol=1e-4)


def test_the_page_needs_nothing_else(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command writes one file with embedded pictures: one per sample, time to the right, low bands below."""
    page_file = tmp_path / "new" / "page.html"
    argv = ["inspect", shards, "--out", str(page_file), "--count", "5", "--seed", "3"]
    assert enter("data", COMMANDS, manual="", argv=argv) == 0
    assert "5 of 24 samples" in capsys.readouterr().out
    page = page_file.read_text()
    links = Links(page)
    assert len(links.addresses) == links.tags.count("figure") == 5
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert not re.search(r"https?://|url\(", page)
    manifest, drawn = draw_samples(shards, count=5, seed=3)
    picture = imread(io.BytesIO(base64.b64decode(links.addresses[0].partition(",")[2])))
    mel_FT = drawn[0].mel_TF.T[::-1]
    assert picture.shape[:2] == mel_FT.shape
    assert np.corrcoef(picture[..., :3].sum(-1).ravel(), mel_FT.ravel())[0, 1] > 0.9
    assert manifest.digest[:16] in page


def test_names_and_labels_are_text(shards: str):
    """A track with a name or labels like HTML is shown as text; long lists are shortened."""
    mel_TF = np.zeros((10, 128), dtype=np.float32)
    info = {
        "uid": "<script>x</script>-0000",
        "track": "x",
        "source": "a&b",
        "start_s": 0.0,
        "duration_s": 0.1,
        "frames": 10,
    }
    labels = {"beats": [i / 2 for i in range(99)], "key": "<b>C major</b>"}
    page = samples_page("<url>", read_manifest(shards), [Drawn("x.tar", mel_TF, {**info, "labels": labels})])
    assert {"script"} & set(Links(page).tags) == set()
    assert "&lt;script&gt;x&lt;/script&gt;-0000" in page
    assert "&lt;b&gt;C major&lt;/b&gt;" in page
    assert "... 99 in all" in page
    assert "49.0" not in page


def test_an_empty_page_is_refused(shards: str, capsys: pytest.CaptureFixture[str]):
    """A count of zero is an error of one sentence."""
    assert enter("data", COMMANDS, manual="", argv=["inspect", shards, "--count", "0"]) == 2
    assert "use 1 or more" in capsys.readouterr().err
