"""Reading a run: whole files are read, half-written rows are not, and what is wrong is named."""

import json

import pytest

from distributed.report.inputs import ReportError, column, latest_of_each_step, read_run


def test_a_file_of_another_encoding_is_named(tmp_path):
    """A byte of latin-1 in config.yaml, edited by hand, is one sentence."""
    (tmp_path / "config.yaml").write_bytes(b"stream: {url: caf\xe9}\n")
    with pytest.raises(ReportError, match=r"config\.yaml of the run is not UTF-8 .*restore it"):
        read_run(str(tmp_path))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    """The message says what was looked for."""
    with pytest.raises(ReportError, match=r"is not a run directory: it has no config\.yaml"):
        read_run(str(tmp_path))


def test_half_a_last_line_is_left_out(own_run):
    """A run that was killed while it wrote a row still has a report."""
    whole = read_run(str(own_run)).metrics
    with (own_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1810, "loss": 0.')
    assert read_run(str(own_run)).metrics == whole


def test_a_broken_file_is_named(own_run):
    """Not a traceback of the JSON parser."""
    (own_run / "facts.json").write_text("{")
    with pytest.raises(ReportError, match=r"facts\.json of the run cannot be read"):
        read_run(str(own_run))


def test_results_that_are_not_there_are_named(own_run):
    """A misspelt --results is an error, not an empty table."""
    with pytest.raises(ReportError, match=r"no results at .*/elsewhere\.jsonl"):
        read_run(str(own_run), str(own_run / "elsewhere.jsonl"))


def test_steps_that_were_trained_twice_count_once():
    """After a kill, the rows of the resumed session replace those of the lost one; diagnostics join their step."""
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "diag/x": 1.0}, {"step": 2, "loss": 1.5}]
    assert latest_of_each_step(rows) == ({"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5, "diag/x": 1.0})


def test_a_column_skips_rows_without_it():
    """A null (what was not finite) is no value either."""
    assert column([{"step": 1, "a": None}, {"step": 2}, {"step": 3, "a": 2}], "a") == ((3.0,), (2.0,))


def test_facts_win_over_the_configuration(own_run):
    """What happened is reported, not what was asked for."""
    run = read_run(str(own_run))
    assert run.fact("stream", "global_batch") == 16
    facts = json.loads((own_run / "facts.json").read_text()) | {"global_batch": 8}
    (own_run / "facts.json").write_text(json.dumps(facts))
    assert read_run(str(own_run)).fact("stream", "global_batch") == 8
    assert run.fact("no", "such", default="-") == "-"
