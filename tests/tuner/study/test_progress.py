"""What a person sees: lines in a log, one live line on a terminal."""

import io
from dataclasses import replace

from rich.console import Console

from tests.tuner.pareto.test_front import OBJECTIVES, TRIALS, trial
from tuner.pareto.front import build_front
from tuner.study.progress import LineProgress, LiveProgress, format_duration

FRONT = build_front(TRIALS, OBJECTIVES)


def test_a_log_gets_the_trial_the_front_the_best_and_the_time_left():
    out = io.StringIO()
    progress = LineProgress(Console(file=out))
    with progress.showing():
        progress.notify("measuring")
        progress.trial_done(TRIALS[1], FRONT, 4, 10)
    text = out.getvalue()
    assert "trial 1: output_tps 40" in text
    assert "4/10 trials" in text
    assert "front 3" in text
    assert "left:" in text


def test_a_failed_trial_says_its_class_and_reason():
    out = io.StringIO()
    failed = replace(trial(7, 1, 1, 1), state="FAILED", failure="crash", reason="it broke")
    LineProgress(Console(file=out)).trial_done(failed, FRONT, 1, 2)
    assert "trial 7: FAILED (crash) it broke" in out.getvalue()


def test_a_terminal_shows_what_is_being_done():
    out = io.StringIO()
    progress = LiveProgress(Console(file=out, force_terminal=True, width=120))
    with progress.showing():
        progress.trial_done(TRIALS[1], FRONT, 4, 10)
        progress.notify("evaluating quality")
    assert "evaluating quality" in out.getvalue()


def test_durations_are_for_people():
    assert [format_duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
