"""The whole system on real music, in one command: `make demo` (or `python examples/demo.py --help`).

The demo renders real scores with sampled instruments, turns them into log-mel shards in a local S3 store, and
pre-trains a small PupuJEPA from that store on two ranks with DeepSpeed ZeRO-2. It kills the training with SIGKILL and
resumes it. Then it probes the frozen encoder against three baselines, runs a two-trial ablation on Ray Tune, and
writes runs/demo/report.html and runs/demo/summary.json.

Each step is an ordinary command, printed before it runs. Finished steps are skipped, so the same command continues
after an interruption.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distributed.run.directory import write_json  # noqa: E402 - a script's path lacks the root
from examples.local_s3 import LocalS3  # noqa: E402
from pupujepa.errors import UserError  # noqa: E402
from pupujepa.json_lines import read_rows  # noqa: E402

BUCKET = "pupujepa-demo"
TASKS = ("key", "beats", "instruments", "tempo", "collection")
PHASES = ("render", "shard", "train", "evaluate", "sweep", "report")


@dataclass
class Demo:
    """Paths, the environment of the child processes, and the seconds that each phase took."""

    out: Path
    environment: dict[str, str]
    ranks: int = 2
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def corpus(self) -> Path:
        """Rendered audio, note lists and labels."""
        return self.out / "corpus"

    @property
    def shards(self) -> str:
        """URL of the log-mel shards in the S3 store."""
        return f"s3://{BUCKET}/shards"

    def phase(self, name: str, work: Callable[[], None]) -> None:
        """Runs `work` and records its duration, unless an earlier call finished it."""
        self.seconds = _read_json(self.out / "phases.json", {})
        if name in self.seconds:
            say(f"{name}: done before, in {self.seconds[name]:.0f} s")
            return
        say(f"{name} ...")
        started = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - started, 1)
        write_json(self.out / "phases.json", self.seconds)
        say(f"{name}: {self.seconds[name]:.0f} s")

    def run(self, *command: str | Path) -> None:
        """Runs one command; raises if it fails."""
        subprocess.run(self.announce(command), check=True, env=self.environment, cwd=ROOT)

    def announce(self, command: Sequence[str | Path]) -> list[str]:
        """Prints the command as typed by a user and returns its argv."""
        words = [str(word) for word in command]
        print("  $ " + shlex.join(words).replace(str(ROOT) + "/", ""), flush=True)
        return [sys.executable if word == "python" else word for word in words]

    def torchrun(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        """Returns the command line of `distributed` on all ranks of this machine."""
        launcher = ("python", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}")
        return (*launcher, "-m", "distributed", *arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all phases; returns the exit code."""
    args = parse(argv)
    started = time.monotonic()
    check(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with LocalS3(args.out / "store") as store:
        store.make_bucket(BUCKET)
        demo = Demo(args.out.resolve(), {**os.environ, **store.environment(), "PYTHONPATH": str(ROOT)}, args.ranks)
        predict(demo, args)
        demo.phase("render", lambda: render(demo, args))
        demo.phase("shard", lambda: shard(demo))
        demo.phase("train", lambda: train(demo, args.overrides))
        demo.phase("evaluate", lambda: evaluate(demo))
        if not args.no_sweep:
            demo.phase("sweep", lambda: sweep(demo))
        demo.phase("report", lambda: report(demo))
    write_summary(demo)
    say(f"{time.monotonic() - started:.0f} s in all; open {args.out / 'report.html'}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="run directory (default: runs/demo)")
    parser.add_argument("--pieces", type=int, default=800, help="scores to render (default: %(default)s)")
    parser.add_argument("--takes", type=int, default=2, help="renderings of each score (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.48, help="longest rendering (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="training processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (default: %(default)s)")
    parser.add_argument("--no-sweep", action="store_true", help="leave out the ablation on Ray Tune")
    parser.add_argument("overrides", nargs="*", help="overrides of the training preset, e.g. train.steps=600")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Runs `doctor`, which fails with remedies if the demo would fail here."""
    demo = Demo(args.out.resolve(), {**os.environ, "PYTHONPATH": str(ROOT)})
    demo.run("python", "-m", "distributed", "doctor", "--for", "demo", "--run-dir", demo.out)


def predict(demo: Demo, args: argparse.Namespace) -> None:
    """Prints the predicted duration of the remaining phases, or the reason for having no prediction."""
    left = [
        p for p in PHASES if p not in _read_json(demo.out / "phases.json", {}) and not (p == "sweep" and args.no_sweep)
    ]
    if not left:
        return
    # imported after the doctor, which gives the remedy if torch does not load
    from examples.calibration import calibrate, predict_s

    rates = calibrate(demo.ranks, demo.environment, overrides=args.overrides)
    if len(left) == len(PHASES):  # the reference pairs rates and seconds of one run
        write_json(demo.out / "calibration.json", asdict(rates))
    try:
        predicted_s = predict_s(rates)
    except UserError as error:
        say(f"no prediction of the time: {error}")
        return
    phases = ", ".join(f"{phase} {predicted_s[phase]:.0f} s" for phase in left)
    minutes = sum(predicted_s[phase] for phase in left) / 60
    say(f"about {minutes:.0f} minutes at the default sizes, in {rates.precision} on this machine: {phases}")


def render(demo: Demo, args: argparse.Namespace) -> None:
    """Renders real scores to audio with exact labels."""
    size = ["--pieces", str(args.pieces), "--takes", str(args.takes), "--seconds", str(args.seconds)]
    demo.run("python", "-m", "data", "scores", demo.corpus, *size, "--seed", str(args.seed), "--workers", "2")


def shard(demo: Demo) -> None:
    """Builds log-mel shards in the S3 store, then checks every byte against the manifest."""
    options = ("--dtype", "uint8", "--shard-mib", "8", "--workers", "2")
    demo.run("python", "-m", "data", "build", demo.corpus / "tracks.jsonl", demo.shards, *options)
    demo.run("python", "-m", "data", "verify", f"{demo.shards}/train")


def train(demo: Demo, overrides: Sequence[str]) -> None:
    """Pre-trains; the first time, kills all processes with SIGKILL on the way and runs the command again."""
    data = (f"stream.url={demo.shards}/train", f"stream.cache_dir={demo.out / 'cache'}")
    command = demo.torchrun("train", "--preset", "demo", "--run-dir", demo.out, *data, *overrides)
    checkpoints = demo.out / "checkpoints"
    if not checkpoints.exists():
        kill_after_checkpoint(demo, command)
    demo.run(*command)


def kill_after_checkpoint(demo: Demo, command: Sequence[str | Path]) -> None:
    """Starts training and kills the launcher and every rank after steps that no checkpoint holds yet.

    The resumed run must repeat these steps with the same losses.
    """
    process = subprocess.Popen(demo.announce(command), env=demo.environment, cwd=ROOT)
    latest, metrics = demo.out / "checkpoints" / "LATEST", demo.out / "metrics.jsonl"
    try:
        while not latest.exists() or last_step(metrics) <= saved_step(latest):
            if process.poll() is not None:
                break
            time.sleep(0.05)
        ended = process.poll()
    finally:
        kill_tree(process)
    if ended == 0:
        say("training ended before it could be killed: nothing is resumed this time")
        return
    if ended is not None:
        raise UserError(f"training ended with exit code {ended}; see above")
    lost, saved = last_step(metrics), latest.read_text().strip()
    say(f"killed all {demo.ranks} ranks with SIGKILL, on purpose, at step {lost}; the newest checkpoint is {saved}")
    say("running the same command again: it continues from there")


def kill_tree(process: subprocess.Popen) -> None:
    """Kills a process and its descendants with SIGKILL, as a power failure would."""
    import psutil  # imported after the doctor, which gives the remedy if it is missing

    # by pid, because each of torchrun's ranks has its own process group
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def evaluate(demo: Demo) -> None:
    """Runs linear probes on the frozen teacher and on the baselines, spread over the same ranks."""
    encoders = ("--encoders", demo.out, "random_init", "log_mel", "chroma")
    demo.run(*demo.torchrun("evaluate", *encoders, "--tasks", "all", "--data", demo.corpus, "--out", demo.out))


def sweep(demo: Demo) -> None:
    """Runs a small ablation: two trials at once, one core each."""
    inputs = ("--shards", f"{demo.shards}/train", "--corpus", demo.corpus, "--out", demo.out / "sweep")
    demo.run("python", "-m", "sweeps", "run", ROOT / "sweeps" / "ablations" / "quick.yaml", *inputs)
    demo.run("python", "-m", "sweeps", "report", demo.out / "sweep")


def report(demo: Demo) -> None:
    """Writes the report page."""
    demo.run("python", "-m", "distributed", "report", demo.out, "--shards", f"{demo.shards}/test")


def write_summary(demo: Demo) -> None:
    """Copies the results of the phases into summary.json."""
    facts = _read_json(demo.out / "facts.json")
    names = "audio_hours shards ranks zero_stage steps crops_per_s data_wait_fraction loss_first loss_last"
    summary = {name: facts[name] for name in f"{names} explained_variance effective_rank".split()}
    tracks = read_rows(demo.corpus / "tracks.jsonl")
    summary["pieces"] = len({track["piece"] for track in tracks})
    summary["probes"] = probe_summary(demo.out / "results.jsonl")
    summary["seconds"] = demo.seconds
    write_json(demo.out / "summary.json", summary)


def probe_summary(results: Path) -> dict[str, dict]:
    """Returns, per task, the metric, each encoder's value, and the interval of trained minus random init."""
    summary: dict[str, dict] = {}
    for row in read_rows(results):
        encoder = row["encoder"] if row["encoder"] in ("random_init", "log_mel", "chroma") else "trained"
        task = summary.setdefault(row["task"], {"metric": row["metric"]})
        task[encoder] = row["value"]
        if encoder == "trained":
            difference = row["difference_to"]["random_init"]
            task |= {"interval": row["interval"], "gain": difference["value"], "gain_interval": difference["interval"]}
    return summary


def last_step(metrics: Path) -> int:
    """Returns the last complete step in the log."""
    return read_rows(metrics, growing=True)[-1]["step"]


def saved_step(latest: Path) -> int:
    """Returns the number of steps in the newest checkpoint, which is the first step that it lacks."""
    return int(latest.read_text().strip().removeprefix("step-"))


def say(sentence: str) -> None:
    """Prints a message of the demo itself."""
    print(f"\n== {sentence}", flush=True)


def _read_json(path: Path, default: dict | None = None) -> dict:
    if default is not None and not path.exists():
        return default
    return json.loads(path.read_text())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(map(str, error.cmd[:6]))} ... ended with exit code {error.returncode}; see above")
