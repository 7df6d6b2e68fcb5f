"""A private folder below a folder of all: made for this user alone, and refused if anybody else has a hand in it."""

import os
import stat
from pathlib import Path

import pytest

from pupujepa.durable import private_folder
from pupujepa.errors import UserError


def test_a_private_folder_is_for_its_user_alone(tmp_path: Path):
    """Whatever the umask; one that exists is taken, and closed if others could look into it."""
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "mine")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "file").touch()
    folder.chmod(0o755)
    assert private_folder(folder) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "file").exists()


@pytest.mark.parametrize("trap", ["link", "writable", "foreign"])
def test_a_folder_that_others_could_change_is_refused(trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link to a place of another's choice, a folder that others may write to, and one of another user."""
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "taken"
    if trap == "link":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777 if trap == "writable" else 0o755)
    if trap == "foreign":
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(UserError, match=f"{folder} is a link, belongs to another user or is open .*; remove it"):
        private_folder(folder)
