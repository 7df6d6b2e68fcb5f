"""The streaming benchmark: wrong deliveries are void; turns, ratios and aims are right."""

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.stream.command import import_shuffle, in_turn, parse, upload
from benchmarks.stream.contender import LAYOUTS, MODULES, Reading, run
from benchmarks.stream.corpus import CorpusConfig, Facts, checksum_of, make_corpus, read_facts, sample
from benchmarks.stream.peers import PEERS, chosen_python
from benchmarks.stream.process import ContenderError, Measured, measure, resident_pages, warm
from benchmarks.stream.report import Setting, checked, per_cpu_s, ratio, table
from pupujepa.errors import UserError

SAMPLES, BATCH = 16, 4


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One corpus of each dtype, in shards of a few samples."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in ("uint8", "float16")}
    for dtype, folder in folders.items():
        make_corpus(folder, CorpusConfig(dtype, SAMPLES, 1 << 20, 2, frames_min=1024, frames_max=1100))
    return folders


@pytest.fixture
def corpus(corpora: dict[str, Path]) -> Path:
    return corpora["uint8"]


def reading(corpus: Path, contender: str, **changes: object) -> Reading:
    url = str(corpus / LAYOUTS[contender])
    return replace(Reading(contender, str(corpus), url, str(corpus), 0, BATCH), **changes)  # type: ignore[arg-type]


def run_here(capsys: pytest.CaptureFixture[str], of: Reading) -> tuple[list[str], dict]:
    """Runs a contender in this process and returns the names of its marks, and its result."""
    run(of)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line["mark"] for line in lines if "mark" in line], next((x for x in lines if "mark" not in x), {})


def took(cpu_s: float, *, seconds: float = 1.0, samples: int = 100) -> Measured:
    return Measured(0.5, seconds, cpu_s, samples, 10.0, 100.0)


def contender_result(times_each: Sequence[int], checksum: float) -> dict[str, object]:
    return {"times_each": list(times_each), "checksum": checksum}


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_ours_delivers_every_sample_with_the_crops_of_its_epoch(corpora, dtype, epochs, capsys):
    """Counts and checksum equal those computed from the stored values; the second epoch has other crops."""
    facts = read_facts(corpora[dtype])
    marks, result = run_here(capsys, reading(corpora[dtype], "pupujepa", epochs=epochs))
    assert marks == ["open", "first", "last"]
    assert checked(result, (SAMPLES, epochs, sum(facts.checksums[:epochs]))) == ""
    assert facts.checksums[0] != facts.checksums[1]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_webdataset_reads_our_tars_to_the_same_values(corpora, dtype, capsys):
    """The peer's own pipeline, with the crop from a table and its own arithmetic, gives the same sum."""
    _, result = run_here(capsys, reading(corpora[dtype], "webdataset", epochs=2))
    gc.collect()  # it leaves shards open, and the collector complains of that: here, and not in a later test
    assert checked(result, (SAMPLES, 2, 2 * read_facts(corpora[dtype]).checksums[0])) == ""


def test_raw_reading_counts_every_byte_of_the_tars(corpus, capsys):
    """The limit reads the same files as our stream."""
    _, result = run_here(capsys, reading(corpus, "raw"))
    assert result["payload_bytes"] == sum(path.stat().st_size for path in (corpus / "tar").glob("*.tar"))


def test_ours_goes_on_with_the_very_next_batch(corpus, capsys, tmp_path):
    """From a state in the middle of an epoch, a new reader gets the next batch of an unbroken run."""
    kept = str(tmp_path / "state")
    run_here(capsys, reading(corpus, "pupujepa", pause_after=2, state=kept))
    _, result = run_here(capsys, reading(corpus, "pupujepa", state=kept))
    assert result["continues"] is True
    assert result["samples"] == BATCH


def test_a_contender_that_does_not_go_on_is_told_from_one_that_does(corpus, capsys, tmp_path):
    """The next batch is compared with that of an unbroken run."""
    kept = tmp_path / "state"
    run_here(capsys, reading(corpus, "pupujepa", pause_after=2, state=str(kept)))
    facts = json.loads(kept.read_text())
    facts["next"][0] = "another"
    kept.write_text(json.dumps(facts))
    _, result = run_here(capsys, reading(corpus, "pupujepa", state=str(kept)))
    assert result["continues"] is False


def test_both_dtypes_hold_the_same_samples():
    """A float16 corpus has the values of the uint8 one, up to rounding."""
    byte, half = (
        CorpusConfig(dtype, 1, 1 << 20, 1, frames_min=1024, frames_max=1100) for dtype in ("uint8", "float16")
    )
    sums = [checksum_of(sample(0, config), epoch=0) for config in (byte, half)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-3)


def test_a_corpus_is_made_once(corpus):
    """The same configuration finds its corpus; facts survive the disk."""
    facts = read_facts(corpus)
    written = (corpus / "tar" / "manifest.json").stat().st_mtime_ns
    assert make_corpus(corpus, facts.config) == facts
    assert isinstance(facts, Facts)
    assert (corpus / "tar" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("times_each", "checksum", "reason"),
    [
        ((16, 2, 2), 100.0, ""),
        ((15, 2, 2), 100.0, "15 of 16 samples came"),
        ((16, 1, 2), 100.0, "each 1 to 2 times instead of 2"),
        ((16, 2, 2), 100.1, "add up to 100.1 instead of 100"),
    ],
)
def test_a_run_that_lost_repeated_or_changed_a_sample_is_void(times_each, checksum, reason):
    """The check names each error and passes a right run."""
    said = checked(contender_result(times_each, checksum), (16, 2, 100.0))
    assert reason in said
    assert bool(said) == bool(reason)


def test_everybody_has_a_turn_in_each_round_and_comes_first_in_turn():
    """Each round begins with another contender."""
    turns = list(in_turn(["a", "b", "c"], 4))
    rounds = [turns[start : start + 3] for start in range(0, 12, 3)]
    assert [sorted(round_) for round_ in rounds] == [["a", "b", "c"]] * 4
    assert [round_[0] for round_ in rounds] == ["a", "b", "c", "a"]


def test_ratios_are_taken_round_by_round_and_leave_void_rounds_out():
    """A machine that slows down in one round slows both sides of its ratio equally."""
    ours, peer = [took(1.0), took(4.0), None, took(2.0)], [took(2.0), took(8.0), took(1.0), took(3.0)]
    assert ratio(ours, peer, per_cpu_s) == (2.0, 1.5, 2.0)
    with pytest.raises(ValueError, match="no round in which both sides count"):
        ratio([None], [took(1.0)], per_cpu_s)


def test_the_table_names_the_best_peer_the_aim_and_what_is_void():
    """The peer with the best median is compared; a contender without a valid round is named with its reason."""
    setting = Setting("cached", "uint8", 0)
    for cpu_s in (1.0, 1.1, 1.2):
        setting.add("pupujepa", took(cpu_s))
        setting.add("litdata", took(2 * cpu_s))
        setting.add("mosaicml", took(3 * cpu_s))
        setting.add("webdataset", None, reason="15 of 16 samples came")
    text = table(setting)
    assert "pupujepa / litdata: **2.00** [2.00, 2.00]; aim 1.5: reached" in text
    assert "webdataset is void: 15 of 16 samples came" in text
    assert "| webdataset" not in text


def test_a_peer_that_cannot_go_on_is_no_measure_of_resuming():
    """The aim compares with the best of those that continue exactly, however quick the others are."""
    setting = Setting("resume", "uint8", 0)
    setting.add("pupujepa", replace(took(1.0), first_s=0.1, continues=True))
    setting.add("mosaicml", replace(took(1.0), first_s=0.5, continues=True))
    setting.add("webdataset", replace(took(1.0), first_s=0.01, continues=False))
    text = table(setting)
    assert "pupujepa / mosaicml: **5.00** [5.00, 5.00]; aim 10: missed" in text
    assert "| webdataset | 0.010 | no |" in text


@pytest.mark.parametrize("peer", [name for name in PEERS if name != "webdataset"])
def test_a_missing_peer_is_said_with_the_command_that_installs_it(peer, tmp_path):
    """Without the peers, the error has the command that installs them."""
    with pytest.raises(UserError, match=f"python -m benchmarks stream --setup {tmp_path}"):
        chosen_python(tmp_path, ["pupujepa", peer])


def test_ours_alone_needs_no_environment_of_peers(tmp_path):
    """Our side runs on the Python at hand."""
    assert chosen_python(tmp_path, ["pupujepa"]) == Path(sys.executable)


def test_every_contender_says_how_it_shuffles():
    """Also those that are not installed here."""
    assert all(len(import_shuffle(name)) > 20 for name in MODULES)


def test_a_batch_that_leaves_a_rest_is_refused(capsys):
    """Contenders treat an incomplete last batch differently, so it is refused."""
    with pytest.raises(SystemExit):
        parse(["--samples", "100", "--batch", "32"])
    assert "is not a multiple of --batch 32, so samples would be dropped" in capsys.readouterr().err


def test_pages_of_a_file_that_was_read_are_seen_in_memory(tmp_path):
    """One entry per page, true after reading: cold and cached files differ."""
    file = tmp_path / "file"
    file.write_bytes(bytes(5 * 4096 + 1))
    warm([file])
    with file.open("rb") as handle:
        pages = resident_pages(handle.fileno())
    assert len(pages) == 6
    assert all(pages)


def test_a_run_is_measured_from_outside(corpus):
    """A fresh process reads the corpus; its samples, seconds, processor time and memory come back."""
    facts = read_facts(corpus)
    python = Path(sys.executable)
    found, result = measure(
        reading(corpus, "pupujepa", epochs=2), python=python, payload_bytes=facts.payload_bytes, samples=SAMPLES
    )
    assert checked(result, (SAMPLES, 2, sum(facts.checksums))) == ""
    assert found.samples == 2 * SAMPLES - BATCH
    assert found.megabytes == pytest.approx(facts.payload_bytes * found.samples / SAMPLES / 1e6)
    assert found.first_s > 0
    assert found.seconds > 0
    assert found.cpu_s >= 0
    assert found.peak_mib > 50


def test_a_contender_that_fails_is_void_and_says_why(corpus):
    """The error has the end of its output."""
    facts = read_facts(corpus)
    broken = reading(corpus, "pupujepa", url=str(corpus / "nothing"))
    with pytest.raises(ContenderError, match="no complete shard set"):
        measure(broken, python=Path(sys.executable), payload_bytes=facts.payload_bytes, samples=SAMPLES)


@pytest.mark.parametrize("way", ["http 2", "botocore 2", "s3fs 1"])
def test_raw_gets_fetch_every_byte(corpus, bucket, way, capsys):
    """Each client of the limit gets all tars of a real server."""
    upload(corpus / "tar", f"{bucket}/tar", digest_of=corpus / "facts.json")
    _, result = run_here(capsys, reading(corpus, "raw", url=f"{bucket}/tar", way=way))
    assert result["payload_bytes"] == sum(path.stat().st_size for path in (corpus / "tar").glob("*.tar"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("contender", ["pupujepa", "webdataset"])
def test_contenders_read_from_a_store(corpus, bucket, contender, capsys, tmp_path):
    """The same samples with the same values come through S3."""
    upload(corpus / "tar", f"{bucket}/tar", digest_of=corpus / "facts.json")
    of = reading(corpus, contender, url=f"{bucket}/tar", cache_dir=str(tmp_path))
    _, result = run_here(capsys, of)
    gc.collect()
    assert checked(result, (SAMPLES, 1, read_facts(corpus).checksums[0])) == ""
