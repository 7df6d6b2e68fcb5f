"""Names from outside: those that are accepted stay in their folder, whatever they are joined to."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupujepa.errors import UserError
from pupujepa.names import require_plain_path

PARENTS = ("/home/x/.bashrc", "../x", "a/../../x", "a/..", "..", "..\\x", "C:\\x", "C:x")
UNCLEAR = (".", "", "./a", "a//b", "a/", "a\0", None, 3, ["a"])


@pytest.mark.parametrize("name", [*PARENTS, *UNCLEAR])
def test_names_that_lead_elsewhere_are_refused(name):
    """Absolute, empty, with "..", a drive, a backslash or a NUL, or no text: a sentence with the list and the name."""
    with pytest.raises(UserError, match=r"manifest\.json names the file .* could overwrite other files"):
        require_plain_path(name, origin="manifest.json")


@pytest.mark.parametrize("name", ["shard-000000.tar", "engine/a.pt", "...", "~x", "a b", "\N{SNOWMAN}/x", "-rf"])
def test_plain_names_are_taken(name):
    """File names and paths of folders below the list, in any script."""
    require_plain_path(name, origin="manifest.json")


@given(st.text(st.sampled_from(["a", "b", ".", "/", "\\", "\0", ":", "C"]), max_size=9))
def test_what_is_accepted_stays_in_its_folder(name):
    """For any text: an accepted name, joined to a folder, is a file below it."""
    folder = Path("/some/folder")
    try:
        require_plain_path(name, origin="list")
    except UserError:
        return
    joined = Path(os.path.normpath(folder / name))
    assert folder in joined.parents
    assert str(joined.relative_to(folder)) == name
