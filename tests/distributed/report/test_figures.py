"""Pictures for the README are pictures of the page."""

import shutil

import numpy as np
import pytest
from PIL import Image

from distributed.report.inputs import ReportError
from docs.figures import FIGURES, figure_files


def test_each_figure_is_a_picture_with_something_on_it(made_run, made_page, tmp_path):
    """One PNG for each part, sharp enough for dense screens, and none of them blank."""
    shutil.copy(made_page, tmp_path / "report.html")
    files = figure_files(tmp_path, tmp_path / "images")
    assert [f.stem for f in files] == list(FIGURES)
    for file in files:
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.shape[1] > 2000
        assert pixels.std() > 5


def test_a_run_without_a_page_is_refused(tmp_path):
    """With the command that makes it."""
    with pytest.raises(ReportError, match="python -m distributed report"):
        figure_files(tmp_path, tmp_path / "images")
