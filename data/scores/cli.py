"""Renders real scores with sampled instruments into audio with exact labels. Nothing is downloaded.

  python -m data scores corpora/scores
  python -m data scores corpora/scores --pieces 200 --takes 1 --seconds 20 --workers 4

The scores (Bach, Palestrina, Haydn, Mozart, Beethoven, fiddle tunes, folk songs ...) ship with music21, the instruments
with pretty_midi. Each take of a piece has its own instruments, key, tempo and window. OUT gets

  tracks.jsonl     one track a line: path, split, group, and labels (key, beats, downbeats, instruments, tempo_bpm,
                   note_density_hz, collection); null if the score does not determine a label. Written last.
  audio/*.wav      mono, 24 kHz, 16 bit
  rejected.jsonl   chosen scores that could not be used, and why
  notes/           parsed scores; --cache puts them elsewhere, to share them among corpora
  settings.json    the settings

Equal settings give equal bytes for any number of workers. After a kill, the same command resumes.
"""

import argparse
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data.pool import map_in_order
from data.scores.catalogue import COLLECTIONS, Candidate, list_candidates, order_candidates, share_out
from data.scores.grouping import assign_splits, group_pieces
from data.scores.labels import key_of, label_take
from data.scores.parsing import parse_piece
from data.scores.pieces import FORMAT_VERSION, Piece, UnusableScoreError, piece_from_json, piece_to_json
from data.scores.rendering import render_job, wav_size
from data.scores.takes import Take, draw_take, notes_of, transpose_takes
from pupujepa.durable import PART_SUFFIX, atomic_file
from pupujepa.errors import UserError
from pupujepa.json_lines import write_rows
from pupujepa.progress import follow

_LOG = logging.getLogger(__name__)

# raise it when the same settings give other bytes (parsing, choice, labels, sound): existing audio is kept by its name
RENDERER_VERSION = 1
MIN_SECONDS = 4.0
_SOUNDFONT = "TimGM6mb.sf2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `scores`."""
    parser.add_argument("out", type=Path, help="folder of the corpus; made when missing")
    parser.add_argument("--pieces", type=int, default=800, help="scores to render (default %(default)s)")
    parser.add_argument("--takes", type=int, default=2, help="performances of each score (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all choices (default %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--seconds", type=float, default=30.72, help="length of a take (default %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder of parsed scores (default OUT/notes)")


def run(args: argparse.Namespace) -> int:
    """Makes or completes the corpus.

    Raises:
        UserError: nothing to do, a missing package, or a folder that was made with other settings, which would mix.
    """
    for name in ("pieces", "takes", "workers"):
        if (value := getattr(args, name)) < 1:
            raise UserError(f"--{name} is {value}, so there is nothing to do; give at least 1")
    if not args.seconds >= MIN_SECONDS:
        raise UserError(f"--seconds is {args.seconds:g}, too short for a tempo or key; give at least {MIN_SECONDS:g}")
    out: Path = args.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but the corpus needs a folder; name another one")
    corpus, soundfont = find_resources()
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, args, soundfont)
    for folder in (out, out / "audio", out / "notes"):
        for part in folder.glob(f".*{PART_SUFFIX}"):  # of a killed run
            part.unlink()
    cache, reader = args.cache or out / "notes", version("music21")
    pieces, rejected = choose_pieces(
        corpus, args.pieces, cache=cache, reader=reader, seed=args.seed, workers=args.workers
    )
    if not pieces:
        raise UserError(f"none of the {len(rejected)} scores in {corpus} could be used: reinstall music21")
    tracks, takes = plan_tracks(pieces, takes=args.takes, seed=args.seed, seconds=args.seconds)
    by_uid = {piece.uid: piece for piece in pieces}
    jobs = [(take, notes_of(by_uid[take.piece], take), out / _audio_path(take)) for take in takes]
    jobs = [job for job in jobs if not job[2].is_file() or job[2].stat().st_size != wav_size(job[0].seconds)]
    render = partial(render_job, soundfont=soundfont)
    rendered = map_in_order(render, jobs, workers=args.workers, preload="data.scores.rendering")
    for _ in follow(rendered, total=len(jobs), title="rendering", unit="takes"):
        pass
    write_rows(out / "rejected.jsonl", rejected)
    write_rows(out / "tracks.jsonl", tracks)
    _report(tracks, pieces=len(pieces), rejected=len(rejected), wanted=args.pieces)
    return 0


def choose_pieces(
    corpus: Path, count: int, *, cache: Path, reader: str, seed: int, workers: int
) -> tuple[list[Piece], list[dict[str, str]]]:
    """Returns `count` pieces, or all if there are fewer, and uid, path and reason of the rejected scores.

    Collections give equal shares. The next piece of its collection replaces a rejected one, so the result depends only
    on seed and count.

    Args:
        corpus: music21's folder of scores.
        cache: folder of parsed pieces, one file each.
        reader: version of the parser; pieces of another version are parsed again.
    """
    orders = {c: order_candidates(list_candidates(corpus, c), seed) for c in COLLECTIONS}
    available = {c: len(order) for c, order in orders.items()}
    pieces: list[Piece] = []
    rejected: list[dict[str, str]] = []
    while len(pieces) < count:
        chosen: list[Candidate] = []
        # fill each collection's share, which grows while others run out
        for (collection, order), share in zip(orders.items(), share_out(list(available.values()), count), strict=True):
            missing = share - sum(piece.collection == collection.name for piece in pieces)
            taken = max(0, min(missing, count - len(pieces) - len(chosen)))
            chosen += order[:taken]
            del order[:taken]
        if not chosen:
            break
        parse = partial(_read_cached, corpus=corpus, cache=cache, reader=reader)
        read = map_in_order(parse, chosen, workers=workers, preload="data.scores.parsing")
        followed = follow(read, total=len(chosen), title="parsing", unit="pieces")
        for candidate, outcome in zip(chosen, followed, strict=True):
            if isinstance(outcome, dict):
                rejected.append(outcome)
                available[candidate.collection] -= 1  # its share goes to the others
            else:
                pieces.append(outcome)
    return sorted(pieces, key=lambda p: p.uid), sorted(rejected, key=lambda r: r["uid"])


def _read_cached(candidate: Candidate, *, corpus: Path, cache: Path, reader: str) -> Piece | dict[str, str]:
    path = cache / f"{candidate.uid}.json"
    stamp = {"format": FORMAT_VERSION, "music21": reader}
    entry: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"stamp": None}
    if entry["stamp"] != stamp:
        try:
            piece, reason = piece_to_json(parse_piece(candidate, corpus)), None
        except UnusableScoreError as error:
            piece, reason = None, str(error)
        entry = {"stamp": stamp, "rejected": reason, "piece": piece}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(entry))
    if entry["rejected"] is not None:
        return {"uid": candidate.uid, "path": candidate.path, "reason": entry["rejected"]}
    return piece_from_json(entry["piece"])


def plan_tracks(
    pieces: Sequence[Piece], *, takes: int, seed: int, seconds: float
) -> tuple[list[dict[str, Any]], list[Take]]:
    """Returns the lines of tracks.jsonl and their takes, in the same order."""
    groups = group_pieces(pieces)
    split_of_piece = assign_splits(pieces, groups, seed=seed)
    by_uid = {piece.uid: piece for piece in pieces}
    drawn = [draw_take(piece, index, seed=seed, seconds=seconds) for piece in pieces for index in range(takes)]
    keys = {take.uid: key_of(by_uid[take.piece], take) for take in drawn}
    splits = {take.uid: split_of_piece[take.piece] for take in drawn}
    final = list(transpose_takes(drawn, keys=keys, splits=splits, seed=seed))
    tracks = [
        {
            "track": take.uid,
            "path": _audio_path(take),
            "source": by_uid[take.piece].collection,
            "split": splits[take.uid],
            "group": groups[take.piece],
            "duration_s": take.seconds,
            "piece": take.piece,
            "title": by_uid[take.piece].title,
            "labels": label_take(by_uid[take.piece], take),
        }
        for take in final
    ]
    return tracks, final


def find_resources() -> tuple[Path, Path]:
    """Returns music21's folder of scores and pretty_midi's soundfont.

    Raises:
        UserError: a required package is missing.
    """
    missing = [name for name in ("music21", "pretty_midi", "tinysoundfont") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} cannot be imported, so no score can be rendered; run "
            "`pip install -e .[demo]` and `pip install --no-deps tinysoundfont`"
        )
    found = []
    for package, name in (("music21", "corpus"), ("pretty_midi", _SOUNDFONT)):
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, package
        found.append(Path(spec.origin).parent / name)
        if not found[-1].exists():
            raise UserError(f"{found[-1]} is missing from {package}: `pip install --force-reinstall {package}`")
    return found[0], found[1]


def _claim(out: Path, args: argparse.Namespace, soundfont: Path) -> None:
    """Writes the settings of the corpus; raises UserError if the folder was made with others."""
    settings = {
        "pieces": args.pieces,
        "takes": args.takes,
        "seed": args.seed,
        "seconds": args.seconds,
        "renderer": RENDERER_VERSION,
        "music21": version("music21"),
        "tinysoundfont": version("tinysoundfont"),
        "soundfont_sha256": sha256(soundfont.read_bytes()).hexdigest(),
    }
    path = out / "settings.json"
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")
        return
    before = json.loads(path.read_text())
    different = [f"{name} {before.get(name)!r} -> {it!r}" for name, it in settings.items() if before.get(name) != it]
    if different:
        raise UserError(
            f"{out} holds a corpus made with other settings ({', '.join(different)}), and the two would mix; "
            "name another folder, or remove this one"
        )


def _audio_path(take: Take) -> str:
    return f"audio/{take.uid}.wav"


def _report(tracks: Sequence[Mapping[str, Any]], *, pieces: int, rejected: int, wanted: int) -> None:
    hours = sum(track["duration_s"] for track in tracks) / 3600
    splits = Counter(track["split"] for track in tracks)
    labelled = {name: sum(track["labels"][name] is not None for track in tracks) for name in tracks[0]["labels"]}
    _LOG.info("%d tracks of %d pieces, %.2f hours; %s", len(tracks), pieces, hours, dict(splits))
    _LOG.info("tracks with a label: %s", labelled)
    if rejected:
        _LOG.warning("%d scores could not be used and were replaced; see rejected.jsonl for the reasons", rejected)
    if pieces < wanted:
        _LOG.warning("%d pieces, not %d: there are no more scores in %d collections", pieces, wanted, len(COLLECTIONS))
