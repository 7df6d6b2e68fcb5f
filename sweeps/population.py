"""A population on Tune: hands out the parts that its members train, and compares them when all have come as far.

Every member is an ordinary run with one set of values from its beginning to its end. Who is replaced stops for good; in
its place a run of its own begins at the checkpoint of the one that it copies (distributed/branch.py), so the metrics of
each run are its own, and its configuration says where it comes from.

All state is in files: lineage.jsonl holds the comparisons, the records how far each run has come. A population that is
started again, whatever stopped it, reads them and goes on. Members of a comparison train side by side as cores and GPUs
allow and wait for the last; the base, to which all differences refer, trains to its end in any case.
"""

import logging
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from tqdm import tqdm

from sweeps.axes import override, read_sweep
from sweeps.lineage import Row, add_to_lineage, of_copy, read_lineage
from sweeps.pbt import Member, decide, point_at, points_of
from sweeps.plan import SWEEP_NAME, read_plan, write_plan
from sweeps.planning import PROBE_KEY, Planner
from sweeps.points import Trial, trial_at
from sweeps.record import is_finished, read_record, write_record
from sweeps.schedulers import QUALITY
from sweeps.trial import probed

logger = logging.getLogger(__name__)


class PopulationSearch(Searcher):
    """Hands out parts of trainings as Tune's trials: {"trial", "out"} and, for all but the last part, {"until"}.

    Attributes:
        left: Tune's number of trials: 0 when nothing is left, -1 for as many as there will be.
        members: of the population at present.
    """

    def __init__(self, out: Path):
        super().__init__(metric=QUALITY, mode="max")
        self._out = out
        self._sweep = read_sweep(out / SWEEP_NAME)
        self._plan = read_plan(out)
        self._base = next(planned for planned in self._plan.trials if planned.trial.is_base)
        every = self._base.settings[PROBE_KEY]
        self._compared_at = range(every, self._base.steps, every)
        self._waiting: deque[dict[str, Any]] = deque()
        self._running: dict[str, str] = {}
        self._awaited: set[str] = set()
        self._generation = 0
        self.members = self._first_members()
        rows = read_lineage(out, self._plan.digest)
        while recorded := [row for row in rows if row["generation"] == self._generation + 1]:
            self._follow(recorded)
        self._hand_out()
        self.left = -1 if self._waiting else 0

    def suggest(self, trial_id: str) -> Any:
        """Returns the configuration of Tune's trial, None when it has to wait for others, FINISHED in the end."""
        if not self._waiting:
            return None if self._running else Searcher.FINISHED
        config = self._waiting.popleft()
        self._running[trial_id] = config["trial"]
        return {**config, "out": str(self._out)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Compares the members when this was the last that was waited for."""
        self._awaited.discard(name := self._running.pop(trial_id))
        if name in self._names() and not self._awaited and self._compare():
            self._hand_out()

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the files are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, likewise."""

    def _first_members(self) -> list[Member]:
        points = points_of(self._sweep)
        names = [trial_at(self._sweep, point, self._sweep.seeds[0]).name for point in points]
        # a point that the base has already is the base, two that come to the same are one
        runs = {self._plan.same_as.get(name, name): point for name, point in zip(names, points)}
        return [
            Member(number, trial, {setting.axis: setting.value for setting in point})
            for number, (trial, point) in enumerate(runs.items(), 1)
        ]

    def _names(self) -> set[str]:
        return {member.trial for member in self.members}

    def _until(self) -> int | None:
        """The step of the next comparison; None when there is no further one."""
        return self._compared_at[self._generation] if self._generation < len(self._compared_at) else None

    def _hand_out(self) -> None:
        """Queues what the members have to train before the next comparison; compares at once who is there already."""
        while True:
            until = self._until()
            names = dict.fromkeys(member.trial for member in self.members)
            self._awaited = {name for name in names if not self._has_come_to(name, until)}
            self._waiting.extend({"trial": name, "until": until} for name in names if name in self._awaited)
            if self._awaited or not self._compare():
                break
        base = self._base.trial.name
        busy = {*self._names(), *self._running.values(), *(part["trial"] for part in self._waiting)}
        if base not in busy and not self._has_come_to(base, None):
            self._waiting.append({"trial": base, "until": None})

    def _has_come_to(self, name: str, until: int | None) -> bool:
        planned = self._plan.planned(name)
        record = read_record(planned, self._out)
        if record.is_over or is_finished(planned, self._out):
            return True
        return until is not None and record.paused_step >= until

    def _compare(self) -> bool:
        """Compares the members, records the decisions and follows them; False when there is nothing to decide."""
        until = self._until()
        if until is None:
            return False
        missing = [name for name in self._names() if not self._has_come_to(name, until)]
        if missing:
            logger.warning("%s did not come to step %d, so the population waits; run again", sorted(missing), until)
            return False
        judged = [self._judged(member, until) for member in self.members]
        if not any(member.is_alive for member in judged):
            logger.warning("all members have diverged, so there is nobody to copy")
            return False
        rows = self._decided(judged, until)
        add_to_lineage(self._out, rows)
        for row in rows:
            if row["copied_from"]:
                tqdm.write(f"{row['trial']}: replaced by {row['becomes']}, {of_copy(row)}", file=sys.stderr)
        self._follow(rows)
        return True

    def _judged(self, member: Member, until: int) -> Member:
        planned = self._plan.planned(member.trial)
        if read_record(planned, self._out).status == "diverged":
            return replace(member, quality=None)
        return replace(member, quality=probed(planned, self._out).get(until))

    def _decided(self, judged: Sequence[Member], until: int) -> list[Row]:
        """Returns the rows of a comparison."""
        generation = self._generation + 1
        # two that go on from the same run with the same values are one
        names: dict[tuple[str, ...], str] = {}
        rows: list[Row] = []
        for decision in decide(judged, self._sweep, generation=generation):
            member, source, becomes = decision.member, decision.copies, decision.member.trial
            if source:
                own = f"member{member.number}.{generation}-seed{self._base.trial.seed}"
                becomes = names.setdefault((source.trial, *decision.values.values()), own)
            row: Row = {
                "sweep": self._plan.digest,
                "generation": generation,
                "samples": round(until * self._base.samples_per_step),
                "member": member.number,
                "trial": member.trial,
                "quality": member.quality if member.is_alive else None,
                "values": dict(member.values),
                "copied_from": source.trial if source else None,
                "source_quality": source.quality if source else None,
                "becomes": becomes,
                "goes_on_with": dict(decision.values),
            }
            rows.append(row)
        return rows

    def _follow(self, rows: Sequence[Row]) -> None:
        """Does what a recorded comparison says, as far as it is not done."""
        plan, search = self._plan, self._plan.search
        assert search is not None
        planner = Planner(self._sweep, plan.launch, inputs=search.inputs, known=plan.trials)
        known = {planned.trial.name for planned in plan.trials}
        new = {row["becomes"]: row for row in rows if row["copied_from"] and row["becomes"] not in known}
        for row in new.values():
            planner.add(self._copy(row, search.shared), drawn=row["goes_on_with"])
        if new:
            self._plan = replace(plan, trials=tuple(planner.planned.values()))
            write_plan(self._plan, self._out)
        self.members = [Member(row["member"], row["becomes"], row["goes_on_with"]) for row in rows]
        for row in rows:
            self._end(row)
        self._generation += 1

    def _end(self, row: Row) -> None:
        """Writes the record of a run that nobody goes on with; the base goes on as what all refer to."""
        planned = self._plan.planned(row["trial"])
        record = read_record(planned, self._out)
        if planned.trial.name not in {*self._names(), self._base.trial.name} and record.status == "paused":
            reason = f"behind others: {row['becomes']} has its place, {of_copy(row)}"
            write_record(record.but(status="pruned", reason=reason), planned, self._out)

    def _copy(self, row: Row, shared: Sequence[str]) -> Trial:
        """Returns the trial that begins at the checkpoint of another one."""
        source = self._plan.planned(row["copied_from"])
        trial = trial_at(self._sweep, point_at(self._sweep, row["goes_on_with"]), source.trial.seed, shared=shared)
        step = round(row["samples"] / self._base.samples_per_step)
        begins = (override("branch.parent", str(self._out / source.directory)), override("branch.step", step))
        return replace(
            trial,
            name=row["becomes"],
            value=f"{trial.value} (member {row['member']} from {row['samples']} crops)",
            overrides=(*trial.overrides, *begins),
            parent=f"{source.digest} as {row['becomes']}",
        )
