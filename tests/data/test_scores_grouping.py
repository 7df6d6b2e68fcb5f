"""Near-duplicates stay together, and groups never face each other across a split."""

from collections import Counter

import numpy as np

from data.scores.grouping import assign_splits, group_pieces, tune_title
from data.scores.pieces import TICKS_PER_QUARTER, Piece
from pupujepa.randomness import generator


def tune(
    uid: str, pitches: list[int], *, quarters: float = 0.5, collection: str = "ryans", title: str = "", work=""
) -> Piece:
    step = round(quarters * TICKS_PER_QUARTER)
    notes = np.array([(n * step, step, pitch, 0) for n, pitch in enumerate(pitches)])
    return Piece(
        uid=uid,
        collection=collection,
        title=title,
        work=work,
        notes=notes,
        beats=np.zeros((0, 3), dtype=np.int64),
        unmetred=(),
        keys=((0, None),),
        length=step * len(pitches),
    )


def melody(seed: int, notes: int = 80) -> list[int]:
    steps = generator(seed, "melody").integers(-4, 5, size=notes)
    return (60 + np.cumsum(steps) % 24).tolist()


def test_a_tune_in_another_key_metre_and_book_is_in_the_same_group():
    original = tune("a", melody(1))
    copy = tune("b", [pitch + 5 for pitch in melody(1)], quarters=1 / 3, collection="airds")
    groups = group_pieces([original, copy, tune("c", melody(2))])
    assert groups["a"] == groups["b"] != groups["c"]


def test_a_variant_with_other_passages_and_repeated_notes_is_in_the_same_group():
    varied = [note for pitch in melody(1)[:50] for note in (pitch, pitch)] + melody(3, notes=30)
    groups = group_pieces([tune("a", melody(1)), tune("b", varied)])
    assert groups["a"] == groups["b"]


def test_unrelated_melodies_are_apart():
    pieces = [tune(f"p{n}", melody(n)) for n in range(40)]
    assert len(set(group_pieces(pieces).values())) == 40


def test_groups_are_transitive_and_do_not_depend_on_the_order_of_pieces():
    long = melody(1, notes=120)
    pieces = [tune("a", long[:70]), tune("b", long[20:100]), tune("c", long[60:])]
    groups = group_pieces(pieces)
    assert len(set(groups.values())) == 1
    assert groups == group_pieces(pieces[::-1])


def test_sections_of_one_work_and_tunes_of_one_title_are_in_one_group():
    pieces = [
        tune("kyrie", melody(1), collection="palestrina", work="Missa brevis"),
        tune("gloria", melody(2), collection="palestrina", work="Missa brevis"),
        tune("reel", melody(3), title="BONNIE KATE'S -- REEL"),
        tune("other", melody(4), title="Bonnie Kate", collection="oneills"),
        tune("alone", melody(5), title="Minuet"),
        tune("alone too", melody(6), title="Minuet"),
    ]
    groups = group_pieces(pieces)
    assert groups["kyrie"] == groups["gloria"]
    assert groups["reel"] == groups["other"]
    assert len(set(groups.values())) == 4
    assert tune_title("The Drunken Sailor (2nd setting)") == tune_title("DRUNKEN SAILOR -- HORNPIPE")


def random_corpus(seed: int) -> tuple[list[Piece], dict[str, str]]:
    """200 pieces of two collections, and groups of up to eight; the lowest uid names a group."""
    rng = generator(seed, "corpus")
    pieces = [tune(f"{n:03d}", melody(0, notes=20), collection="bach" if n < 120 else "airds") for n in range(200)]
    bounds = np.cumsum(rng.integers(1, 9, size=200))
    groups = {
        piece.uid: f"{bounds[np.searchsorted(bounds, n, side='right') - 1] if n >= bounds[0] else 0:03d}"
        for n, piece in enumerate(pieces)
    }
    return pieces, groups


def test_no_group_is_in_two_splits_and_shares_are_kept_in_every_collection():
    for seed in range(20):
        pieces, groups = random_corpus(seed)
        splits = assign_splits(pieces, groups, seed=seed)
        for group in set(groups.values()):
            assert len({splits[uid] for uid, g in groups.items() if g == group}) == 1
        collections = {piece.uid: piece.collection for piece in pieces}
        for collection in ("bach", "airds"):
            members = [uid for uid in splits if collections[groups[uid]] == collection]
            shares = {split: n / len(members) for split, n in Counter(splits[uid] for uid in members).items()}
            assert abs(shares["test"] - 0.18) < 0.06 and abs(shares["valid"] - 0.12) < 0.06


def test_another_seed_splits_otherwise_and_the_order_of_pieces_does_not_matter():
    pieces, groups = random_corpus(0)
    assert assign_splits(pieces, groups, seed=0) == assign_splits(pieces[::-1], groups, seed=0)
    assert assign_splits(pieces, groups, seed=0) != assign_splits(pieces, groups, seed=1)


def test_three_groups_are_enough_for_three_splits():
    pieces = [tune(uid, melody(n)) for n, uid in enumerate("abc")]
    assert set(assign_splits(pieces, {uid: uid for uid in "abc"}, seed=3).values()) == {"train", "valid", "test"}
