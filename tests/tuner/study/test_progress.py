"""What a person or a program sees of a running study, with a clock that only moves when told."""

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.fakes.in_process import InProcessWorker
from tests.tuner.conftest import Tune
from tests.tuner.pareto.test_front import OBJECTIVES, TRIALS, trial
from tuner.cli import study as command
from tuner.formatting import format_duration
from tuner.pareto.front import build_front
from tuner.store.repository import Store
from tuner.study.displays import LINE_S, JsonLines, Lines, LiveView
from tuner.study.progress import Display, StudyProgress

FRONT = build_front(TRIALS, OBJECTIVES)
MOST_SILENT_S = 15.0


@dataclass
class ToldClock:
    """A clock and its ticker: `pass_time` moves it second by second, and ticks at each."""

    now_s: float = 0.0
    ticks: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    @contextlib.contextmanager
    def ticker(self, tick: Callable[[], None]) -> Iterator[None]:
        self.ticks.append(tick)
        yield
        self.ticks.remove(tick)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            for tick in self.ticks:
                tick()


def progress_of(display: Display, clock: ToldClock) -> StudyProgress:
    return StudyProgress([display], clock, clock.ticker)


def lines_of(clock: ToldClock) -> tuple[StudyProgress, io.StringIO]:
    out = io.StringIO()
    return progress_of(Lines(Console(file=out)), clock), out


def test_a_stage_that_takes_long_prints_a_line_in_time_with_what_is_done_and_left():
    clock = ToldClock()
    progress, out = lines_of(clock)
    progress.expect(10, 4, {"search": 800.0, "confirm": 200.0}, confirm_rounds=3)
    with progress.showing():
        progress.trial_began(4)
        progress.engine_said("pack", 3, 16)
        clock.pass_time(60)
    lines = out.getvalue().splitlines()
    assert len(lines) >= 60 / MOST_SILENT_S
    assert "4/10 trials" in lines[0]
    assert "trial 4: packing experts 3/16 (10 s)" in lines[0]
    # 70 s of this trial, five of 80 s, and the confirmation
    assert "left: trial 70 s, study 11 min" in lines[0]


def test_a_log_gets_the_trial_the_front_and_the_recommended_config():
    progress, out = lines_of(ToldClock())
    progress.expect(10, 0, {})
    progress.trial_done(TRIALS[1], FRONT, 4)
    text = out.getvalue()
    assert "trial 1: searched output_tps 40" in text
    assert "4/10 trials" in text
    assert "front 3 · recommended: trial 1, output_tps 40" in text


def test_a_failed_trial_says_its_class_and_reason():
    progress, out = lines_of(ToldClock())
    failed = replace(trial(7, 1, 1, 1), state="FAILED", failure="crash", reason="it broke")
    progress.trial_done(failed, FRONT, 1)
    assert "trial 7: FAILED (crash) it broke" in out.getvalue()


def test_a_terminal_shows_stage_time_left_and_front():
    out, clock = io.StringIO(), ToldClock()
    view = LiveView(Console(file=out, force_terminal=True, width=120))
    progress = progress_of(view, clock)
    progress.expect(10, 0, {"search": 100.0})
    with progress.showing():
        progress.trial_done(TRIALS[1], FRONT, 4)
        progress.engine_said("evaluate", 3, 40)
        clock.pass_time(1)
    text = out.getvalue()
    assert "evaluating quality 3/40" in text
    assert "left: " in text
    assert "1 *" in text


def test_the_time_left_learns_from_stages_and_includes_confirmation():
    clock = ToldClock()
    progress, _ = lines_of(clock)
    progress.expect(3, 0, {}, confirm_rounds=2)
    with progress.showing():
        progress.trial_began(0)
        progress.began("searching")
        assert left(progress) == (None, None)  # nothing to go by
        run_trial(progress, clock)
        progress.trial_done(TRIALS[1], FRONT, 1)
        progress.trial_began(1)
        progress.engine_said("configure", 0, None)
        # two trials of 4 + 6 + 2 * 5 s; three members twice: 4 + 6 + 5 s, no opening was seen
        assert left(progress) == (20.0, 40.0 + 6 * 15.0)
        clock.pass_time(3)
        assert left(progress) == (17.0, 37.0 + 6 * 15.0)
        progress.trial_done(TRIALS[2], FRONT, 3)
        progress.confirming(1, 0, 6)
        clock.pass_time(40)
        progress.confirming(2, 1, 6)
        assert left(progress) == (None, 5 * 40.0)  # as long as the first took
        clock.pass_time(30)
        assert left(progress) == (None, 5 * 40.0 - 30.0)


def test_the_time_left_is_within_the_timeout():
    clock = ToldClock()
    progress, _ = lines_of(clock)
    progress.expect(100, 0, {"search": 10_000.0}, timeout_s=60.0)
    with progress.showing():
        progress.trial_began(0)
        progress.engine_said("configure", 0, None)
        clock.pass_time(20)
        assert left(progress)[1] == 40.0


def run_trial(progress: StudyProgress, clock: ToldClock) -> None:
    for operation, seconds in (("configure", 4), ("warm_up", 6)):
        progress.engine_said(operation, 0, None)
        clock.pass_time(seconds)
    progress.repeats(0, 2)
    for done in range(2):
        progress.repeats(done, 2)
        progress.engine_said("measure", 0, 1)
        clock.pass_time(5)
        progress.engine_said("measure", 1, 1)


def left(progress: StudyProgress) -> tuple[float | None, float | None]:
    activity = progress.now()
    assert activity is not None
    return activity.trial_left_s, activity.study_left_s


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> ToldClock:
    """A clock that the command's progress reads; each operation of the engine takes 40 s of it."""
    clock, request = ToldClock(), InProcessWorker.request

    def take_long(self: InProcessWorker, operation: str, *words: object, **arguments: object):
        clock.pass_time(40)
        return request(self, operation, *words, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(InProcessWorker, "request", take_long)
    monkeypatch.setattr(
        command, "StudyProgress", lambda shown: StudyProgress(shown, clock, clock.ticker)
    )
    return clock


def test_a_study_of_a_slow_engine_is_never_silent(
    tune: Tune, slow_engine: ToldClock, monkeypatch: pytest.MonkeyPatch
):
    printed_s: list[float] = []
    note = Lines.note

    def timed(self: Lines, text: str) -> None:
        printed_s.append(slow_engine.now_s)
        note(self, text)

    monkeypatch.setattr(Lines, "note", timed)
    done = tune("--definition", "study.yaml", "--trials", "3")
    assert done.code == 0, done.err
    pauses = [b - a for a, b in itertools.pairwise(printed_s)]
    assert slow_engine.now_s > 600
    assert max(pauses) <= LINE_S < MOST_SILENT_S
    for words in ("opening the model", "evaluating the 16-bit reference", "confirming the front"):
        assert words in done.err
    confirming = [line for line in done.err.splitlines() if "confirming" in line]
    assert all("study unknown" not in line for line in confirming)


def test_json_progress_is_one_object_a_line_and_covers_every_stage(
    tune: Tune, slow_engine: ToldClock
):
    done = tune("--definition", "study.yaml", "--trials", "4", "--json", "--json-progress")
    assert done.code == 0, done.err
    assert done.document["recommended"] is not None
    events = [json.loads(line) for line in done.err.splitlines()]
    assert {event["schema"] for event in events} == {"expertune-progress/v1"}
    assert [event["event"] for event in events].count("trial") == 4
    assert events[-1]["event"] == "end"
    stages = [event for event in events if event["event"] == "stage"]
    assert {event["stage"] for event in stages} == {
        "opening", "checking", "planning", "profiling", "tracing", "predicting", "searching",
        "configuring", "warming_up", "measuring", "reference", "evaluating", "confirming",
    }  # fmt: skip
    at = [event["elapsed_s"] for event in stages]
    assert max(b - a for a, b in itertools.pairwise(at)) <= LINE_S
    running = [event for event in stages if event["trials_planned"] is not None]
    assert all(event["study_left_s"] is not None for event in running)
    assert stages[-1]["stage"] == "confirming"


def test_packing_has_a_stage_of_its_own():
    out = io.StringIO()
    progress = progress_of(JsonLines(out), ToldClock())
    progress.engine_said("configure", 0, None)
    progress.engine_said("pack", 1, 16)
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(e["stage"], e["done"], e["total"]) for e in said] == [
        ("configuring", 0, None),
        ("packing", 1, 16),
    ]


def test_the_store_keeps_what_runs_and_clears_it_at_the_end(
    tune: Tune, slow_engine: ToldClock, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    kept: list[dict[str, object]] = []
    keep = Store.keep_progress

    def noted(self: Store, study_id: int, activity: dict[str, object]) -> None:
        keep(self, study_id, activity)
        found = self.study("small").progress
        assert found is not None
        kept.append(dict(found))

    monkeypatch.setattr(Store, "keep_progress", noted)
    assert tune("--definition", "study.yaml", "--trials", "3").code == 0
    assert {"measuring", "confirming"} <= {one["stage"] for one in kept}
    assert all(one["study_left_s"] is not None for one in kept)
    assert tune("show", "small", "--json").document["study"]["progress"] is None


def test_durations_are_for_people():
    assert [format_duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
