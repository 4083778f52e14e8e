"""Which repeats of the front begin before a study's end."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.study import confirm
from tuner.study.confirm import Confirmation

TAKES_S = {1: 30.0, 2: 40.0, 3: 35.0}


@dataclass(frozen=True)
class Timed(Confirmation):
    """Its repeats take TAKES_S by the clock `now`."""

    now: list[float] = field(default_factory=lambda: [0.0])
    begun: list[int] = field(default_factory=list)

    def _confirmed(self, member: Any) -> int:
        return self.begun.count(member.id)

    def _repeat(self, member: Any) -> bool:
        self.begun.append(member.id)
        self.now[0] += TAKES_S[member.id]
        return True


@pytest.mark.parametrize(
    ("until_s", "begun"),
    [
        (None, [1, 2, 3, 3, 2, 1]),
        (99.0, [1, 2]),  # the third would take 40 s, as the longest so far
        (111.0, [1, 2, 3]),
        (141.0, [1, 2, 3, 3]),  # it took 35 s before
    ],
)
def test_no_repeat_begins_that_would_pass_the_end(
    monkeypatch: pytest.MonkeyPatch, until_s: float | None, begun: list[int]
):
    nothing = SimpleNamespace(close=lambda: None, confirming=lambda *_: None)
    context: Any = SimpleNamespace(session=nothing, progress=nothing)
    unused: Any = None
    confirmation = Timed(context, unused, unused)
    monkeypatch.setattr(confirm.time, "monotonic", lambda: confirmation.now[0])
    members: Any = [SimpleNamespace(id=number, number=number) for number in TAKES_S]
    assert confirmation.confirm(members, 2, until_s) == len(begun)
    assert confirmation.begun == begun
