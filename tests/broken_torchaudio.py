"""A torchaudio that was not built for this torch: its import dies as that of a real one does."""

from pathlib import Path

MESSAGE = "libtorchaudio.so: undefined symbol: torch_exception_get_what_without_backtrace"


def write_broken_torchaudio(folder: Path) -> Path:
    """Writes a package that a PYTHONPATH beginning with the returned folder imports instead of the installed one."""
    (folder / "torchaudio").mkdir(parents=True)
    (folder / "torchaudio" / "__init__.py").write_text(f"raise OSError({MESSAGE!r})\n")
    return folder
