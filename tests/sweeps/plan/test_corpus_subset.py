"""The part of a corpus that a sweep probes: whole pieces, every split's share, the same ones each time."""

import json

import pytest

from distributed.marble.datasets.corpus import SPLITS, read_labelled_corpus
from pupujepa.errors import UserError
from sweeps.plan.corpus_subset import subset, write_subset


def rows(groups: int = 200, takes: int = 2) -> list[dict]:
    split = ("train", "train", "train", "valid", "test")
    return [
        {"track": f"g{g}-t{t}", "path": "x.wav", "group": f"g{g}", "split": split[g % 5]}
        for g in range(groups)
        for t in range(takes)
    ]


def test_splits_keep_their_share_and_groups_stay_whole():
    """A quarter of the tracks is a quarter of each split; no piece is cut."""
    kept = subset(rows(), 100)
    assert [sum(r["split"] == s for r in kept) for s in SPLITS] == [60, 20, 20]
    assert all(sum(r["group"] == k["group"] for r in kept) == 2 for k in kept)


def test_the_order_of_the_list_does_not_decide():
    """The same pieces are kept from a list in another order, in that order."""
    forward, backward = subset(rows(), 100), subset(rows()[::-1], 100)
    assert forward == backward[::-1]


def test_a_larger_part_contains_a_smaller_one():
    """Raising probe_tracks adds pieces and drops none."""
    small, large = ({r["track"] for r in subset(rows(), n)} for n in (60, 120))
    assert small < large


def test_all_are_kept_when_more_are_asked_for():
    """A number above the corpus' size is no error."""
    assert subset(rows(), 10_000) == rows()


def test_the_subset_is_a_corpus_over_the_same_audio(corpus, tmp_path):
    """The evaluator reads it like any other; no audio is copied."""
    part = read_labelled_corpus(write_subset(corpus, tmp_path / "part", tracks=8))
    whole = {t.uid: t.path.resolve() for t in read_labelled_corpus(corpus).tracks}
    assert len(part.tracks) == 8
    assert all(whole[t.uid] == t.path for t in part.tracks)
    assert [p.name for p in (tmp_path / "part").iterdir()] == ["tracks.jsonl"]


def test_too_few_tracks_are_refused(corpus, tmp_path):
    """A probe without a validation split could not choose anything."""
    with pytest.raises(UserError, match=r"probe_tracks: 2 leaves no track in valid, test"):
        write_subset(corpus, tmp_path / "part", tracks=2)
    assert json.loads((corpus / "tracks.jsonl").read_text().splitlines()[0])["track"]
