"""Names of files that come from outside: manifests, lists of files, plans and hub ids."""

from pathlib import PurePosixPath, PureWindowsPath

from pupujepa.errors import UserError


def require_plain_path(name: object, *, origin: str) -> None:
    """Raises UserError unless a name is a plain relative path, which stays in its folder.

    A foreign list could otherwise read or overwrite any file of the user: `/home/x/.bashrc`, `../x`.

    Args:
        name: as parsed; anything but text is refused.
        origin: the list that holds it, for the message.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise UserError(
            f"{origin} names the file {name!r}, which is not a plain relative path and could overwrite other files; "
            "do not use this copy"
        )


def _is_plain(name: str) -> bool:
    # PurePosixPath drops "." and empty parts, so a name with them is not equal to its path
    path = PurePosixPath(name)
    is_within = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and str(path) == name
    return is_within and "\0" not in name and "\\" not in name and not PureWindowsPath(name).drive
