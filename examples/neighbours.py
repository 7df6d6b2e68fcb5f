"""Similar songs of a folder: the nearest neighbours of every file as a table and a picture.

  python examples/neighbours.py runs/demo/export songs/ --out neighbours/
  python examples/neighbours.py owner/weights songs/ --out neighbours/ --neighbours 5 --layer 6

It writes OUT/neighbours.csv, OUT/neighbours.png (the similarity of all pairs) and OUT/vectors/, one row per file. The
next run embeds only files that are new or changed, or all with another layer or other weights. It needs at least three
files, and for the picture matplotlib: pip install 'pupujepa[eval]'; the table is written without it.

Vectors of all songs point in nearly one direction. So the folder's mean is subtracted first, and the cosine of the rest
shows which songs are similar *within this folder*.
"""

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pupujepa.__main__ import COMMANDS  # noqa: E402 - a script's path lacks the root
from pupujepa.audio.find import find_audio  # noqa: E402
from pupujepa.embedding.stores import read_row  # noqa: E402
from pupujepa.errors import UserError  # noqa: E402
from pupujepa.front_door import enter, quiet_when_unread  # noqa: E402

_SHOWN_NAMES = 60


@dataclass(frozen=True)
class Neighbour:
    """A file, a similar one, and the cosine of their vectors about the folder's mean."""

    name: str
    neighbour: str
    rank: int
    similarity: float


def main(argv: list[str]) -> int:
    """Embeds and compares the files and writes the results; returns the exit code."""
    args = parse(argv)
    if args.neighbours < 1:
        raise UserError(f"--neighbours {args.neighbours}: give at least one per file")
    files = enough([file.name for file in find_audio(args.audio)[0]])
    vectors = args.out / "vectors"
    words = ["embed", args.weights, *map(str, args.audio), "--out", str(vectors), "--readout", "mean", "--overwrite"]
    words += ["--layers", str(args.layer), "--skip-broken", *(["--device", args.device] if args.device else [])]
    code = enter("pupujepa", COMMANDS, manual="", argv=words)
    if code:
        return code
    names, vectors_ND = read_vectors(vectors, files)
    # a name that is not UTF-8 can be neither printed nor drawn
    names = [name.encode(errors="replace").decode() for name in names]
    similarity_NN = similarities(vectors_ND)
    found = nearest(names, similarity_NN, count=args.neighbours)
    write_csv(found, args.out / "neighbours.csv")
    print(f"each file and its most similar ones (1 the same, 0 unrelated, -1 opposite):\n\n{table(found)}\n")
    print(f"written: {args.out / 'neighbours.csv'}")
    draw(names, similarity_NN, args.out / "neighbours.png")
    print(f"written: {args.out / 'neighbours.png'}")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a folder of weights, or a hub id")
    parser.add_argument("audio", nargs="+", type=Path, help="folders of audio files, or audio files")
    parser.add_argument("--out", type=Path, required=True, help="folder for vectors, table and picture")
    parser.add_argument("--neighbours", type=int, default=3, help="per file (default: %(default)s)")
    parser.add_argument("--layer", type=int, default=-1, help="layer of the features, 0 = patches (default: the last)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    return parser.parse_args(argv)


def enough(names: list[str]) -> list[str]:
    """Returns the names of files to compare.

    Raises:
        UserError: fewer than three, which are always opposites about their mean.
    """
    if len(names) < 3:
        raise UserError(f"{len(names)} usable audio files are too few to compare; give at least three")
    return names


def read_vectors(folder: Path, files: list[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Returns names and vectors [N, D] of the files for which `embed --readout mean` wrote a row.

    Raises:
        UserError: fewer than three.
    """
    paths = {name: folder / f"{name}.npz" for name in files}
    names = enough([name for name in files if paths[name].is_file()])
    return names, np.stack([read_row(paths[name]).embedding.values[0] for name in names]).astype(np.float64)


def similarities(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the cosines [N, N] of vectors about their mean."""
    centred = vectors_ND - vectors_ND.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def nearest(names: list[str], similarity_NN: NDArray[np.float64], *, count: int) -> list[Neighbour]:
    """Returns the `count` most similar other files of every file, best first."""
    # moves the diagonal below every other similarity, so that no file is its own neighbour
    others = similarity_NN - 2 * np.eye(len(names)) * (1 + np.abs(similarity_NN).max())
    found = []
    for i, name in enumerate(names):
        best = np.argsort(-others[i], kind="stable")[: min(count, len(names) - 1)]
        found += [Neighbour(name, names[j], rank + 1, float(similarity_NN[i, j])) for rank, j in enumerate(best)]
    return found


def table(found: list[Neighbour]) -> str:
    """Returns one line per file: its neighbours with their similarity."""
    lines: dict[str, list[str]] = {}
    for one in found:
        lines.setdefault(one.name, []).append(f"{one.neighbour} ({one.similarity:+.2f})")
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {', '.join(others)}" for name, others in lines.items())


def write_csv(found: list[Neighbour], path: Path) -> None:
    """Writes file, neighbour, rank and similarity."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "neighbour", "rank", "similarity"])
        writer.writerows([one.name, one.neighbour, one.rank, f"{one.similarity:.4f}"] for one in found)


def draw(names: list[str], similarity_NN: NDArray[np.float64], path: Path) -> None:
    """Draws the similarities of all pairs, with similar files next to each other.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the picture needs matplotlib, which is not installed: pip install 'pupujepa[eval]'") from error
    order = side_by_side(similarity_NN)
    size = min(4 + 0.22 * len(names), 18)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similarity_NN[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    if len(names) <= _SHOWN_NAMES:
        # a name with two dollar signs is no formula
        axes.set_xticks(range(len(names)), [names[i] for i in order], rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(names)), [names[i] for i in order], fontsize=7, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.7, label="similarity: cosine about the folder's mean")
    figure.savefig(path, dpi=120)


def side_by_side(similarity_NN: NDArray[np.float64]) -> list[int]:
    """Returns an order in which each file is followed by the most similar of the remaining ones."""
    left = set(range(1, len(similarity_NN)))
    order = [0]
    while left:
        order.append(max(left, key=lambda j: (similarity_NN[order[-1], j], -j)))
        left.remove(order[-1])
    return order


if __name__ == "__main__":
    with quiet_when_unread():
        try:
            sys.exit(main(sys.argv[1:]))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
