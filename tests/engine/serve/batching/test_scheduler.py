"""The engine's thread: texts as if alone, places given on, a bounded queue, failures contained."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.errors import EngineError
from engine.run.engine import Engine
from engine.run.generate import generate
from engine.run.sampling import SamplingOptions
from engine.serve.batching.scheduler import EngineLoop, QueueFullError
from engine.serve.batching.sequence import SequenceRequest, StepOutput
from tests.engine.conftest import TEXT
from tests.engine.serve.made import Heard, configure, eventually, looping, want


@contextmanager
def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Forward passes wait for the event, which is set when the block is left."""
    gate, forward = threading.Event(), engine.forward

    def waiting(*arguments: Any, **named: Any) -> Any:
        assert gate.wait(60)
        return forward(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "forward", waiting)
        try:
            yield gate
        finally:
            gate.set()


def ask(loop: EngineLoop, *wanted: SequenceRequest) -> list[Heard]:
    received = [Heard() for _ in wanted]
    loop.submit(list(zip(wanted, received, strict=True)))
    return received


def alone(engine: Engine, tokenizer: Any, prompt: Sequence[int], tokens: int) -> str:
    done = generate(engine, tokenizer, list(prompt), max_tokens=tokens, sampling=SamplingOptions())
    return done.text


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Of different lengths, one longer than a chunk of 16."""
    lengths = (40, 3, 17, 9, 24, 1)
    ids = tokenizer(TEXT)["input_ids"]
    return [ids[start : start + length] for start, length in enumerate(lengths)]


def test_sequences_of_different_lengths_say_together_what_they_say_alone(
    engine: Engine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    configure(engine, **{"prefill.chunk_tokens": 16})
    expected = [alone(engine, tokenizer, prompt, 10) for prompt in prompts]
    with looping(engine, tokenizer) as (loop, meters, _):
        received = ask(loop, *(want(prompt, 10) for prompt in prompts))
        assert [one.text for one in received] == expected
        assert [one.wait().tokens for one in received] == [10] * len(prompts)
        eventually(lambda: loop.running == 0)
    assert meters.totals.prompt_tokens == sum(map(len, prompts))
    assert meters.totals.output_tokens == 10 * len(prompts)
    assert meters.totals.decode_hits + meters.totals.decode_misses > 0
    configure(engine)


def test_places_are_given_on_while_others_go_on(
    engine: Engine, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[tuple[str, int]] = []
    forward = engine.forward

    def noting(batches: Any, phase: Any, consume: Any = None) -> Any:
        groups.append((phase, len(batches)))
        return forward(batches, phase, consume)

    monkeypatch.setattr(engine, "forward", noting)
    with looping(engine, tokenizer) as (loop, _, _):
        lengths = (6, 2, 6, 3)
        for one in ask(loop, *(want(prompts[0], length) for length in lengths)):
            one.wait()
    assert groups == [
        ("prefill", 3), ("decode", 3),  # the second is done
        ("prefill", 1), ("decode", 3), ("decode", 3),  # the fourth took its place and is done
        ("decode", 2), ("decode", 2),
    ]  # fmt: skip


def test_a_cancelled_sequence_leaves_and_its_keys_and_values_are_freed(
    engine: Engine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    with looping(engine, tokenizer) as (loop, meters, _):
        received = Heard()
        (sequence,) = loop.submit([(want(prompts[0], 200), received)])
        eventually(lambda: bool(received.outputs))
        loop.cancel([sequence])
        eventually(lambda: loop.running == 0)
        assert sequence.batch.kv is None
        assert meters.totals.cancelled == 1
        assert meters.totals.output_tokens < 200
        assert ask(loop, want(prompts[1], 2))[0].wait().finish == "length"


def test_the_queue_is_bounded_and_takes_all_or_none(
    engine: Engine,
    tokenizer: Any,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = want(prompts[1], 2)
    with looping(engine, tokenizer, queue=2) as (loop, meters, _):
        with held(engine, monkeypatch):
            first = ask(loop, one, one, one)
            eventually(lambda: loop.running == 3)
            with pytest.raises(QueueFullError, match="3 sequences run and 0 wait"):
                ask(loop, one, one, one)
            assert loop.waiting == 0
            last = Heard()
            waiting = loop.submit([(one, last), (one, Heard())])
            with pytest.raises(QueueFullError):
                ask(loop, one)
            loop.cancel(waiting[1:])
            assert loop.waiting == 1
        for received in (*first, last):
            assert received.wait().finish == "length"
        assert meters.totals.cancelled == 1


def test_an_answer_that_has_gone_out_holds_no_place(
    engine: Engine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    one, again, running = want(prompts[1], 2), Heard(), []

    with looping(engine, tokenizer, queue=0) as (loop, _, _):

        def asks_at_once(output: StepOutput) -> None:
            if output.last:
                running.append(loop.running)
                loop.submit([(one, again)])

        loop.submit([(one, asks_at_once)])
        assert again.wait().finish == "length"
    assert running == [0]


def test_a_step_that_fails_fails_what_ran_and_the_next_requests_work(
    engine: Engine,
    tokenizer: Any,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forward, calls = engine.residency.begin_pass, [0]

    def failing(start: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError("the disk is gone")
        forward(start)

    monkeypatch.setattr(engine.residency, "begin_pass", failing)
    with looping(engine, tokenizer) as (loop, meters, failures):
        received = ask(loop, want(prompts[0], 8), want(prompts[1], 8))
        assert [one.wait().error for one in received] == ["the engine failed: OSError"] * 2
        assert ask(loop, want(prompts[1], 3))[0].wait().finish == "length"
        assert (meters.totals.failed, failures) == (2, [])
    assert "the disk is gone" in caplog.text


def test_an_engine_that_cannot_be_configured_again_refuses_and_says_so(
    engine: Engine,
    tokenizer: Any,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise EngineError("nothing works")

    with looping(engine, tokenizer) as (loop, _, failures):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "forward", failing)
            patch.setattr(engine, "configure", failing)
            received = ask(loop, *[want(prompts[0], 8)] * 5)
            assert [bool(one.wait().error) for one in received] == [True] * 5
            eventually(lambda: bool(failures))
        assert "cannot be configured again: nothing works" in failures[0]
        with pytest.raises(EngineError, match="nothing works"):
            ask(loop, want(prompts[0]))


def test_nan_ends_only_its_own_sequence(
    engine: Engine, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine.forward

    def broken(batches: Any, phase: Any, consume: Any = None) -> list[torch.Tensor]:
        logits: list[torch.Tensor] = forward(batches, phase, consume)
        return [logits[0] * math.nan, *logits[1:]]

    with looping(engine, tokenizer) as (loop, _, _), monkeypatch.context() as patch:
        patch.setattr(engine, "forward", broken)
        first, second = ask(loop, want(prompts[0], 1), want(prompts[1], 1))
        assert "NaN at token 1" in (first.wait().error or "")
        assert second.wait().finish == "length"


def test_a_seed_repeats_whatever_runs_beside_it(
    engine: Engine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    def sampled(seed: int) -> SequenceRequest:
        return want(prompts[2], 12, sampling=SamplingOptions(1.5, 0.9, seed))

    with looping(engine, tokenizer) as (loop, _, _):
        (first,) = ask(loop, sampled(7))
        first.wait()
        _, again, other = ask(loop, want(prompts[0], 12), sampled(7), sampled(8))
        assert first.text == again.text != other.text


def test_every_end_of_sequence_token_of_the_generation_config_ends_a_text(
    engine: Engine, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generate(engine, tokenizer, prompts[0], max_tokens=1, sampling=SamplingOptions())
    ends = [2, first.tokens[0]]
    monkeypatch.setattr(engine.model.model.generation_config, "eos_token_id", ends)
    with looping(engine, tokenizer) as (loop, _, _):
        (received,) = ask(loop, want(prompts[0], 5))
        assert (received.text, received.wait().finish, received.wait().tokens) == ("", "stop", 0)


def test_logprobs_are_those_of_the_logits_and_name_the_likeliest(
    engine: Engine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    with looping(engine, tokenizer) as (loop, _, _):
        (received,) = ask(loop, want(prompts[0], 4, logprobs=3))
        received.wait()
    found = [one for output in received.outputs for one in output.logprobs]
    assert len(found) == 4
    for one in found:
        assert one.chosen == one.top[0]  # greedy
        values = [each.logprob for each in one.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) < 1


def test_end_tokens_are_ignored_or_come_only_after_the_least_number_of_tokens(
    engine: Engine, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = generate(engine, tokenizer, prompts[0], max_tokens=12, sampling=SamplingOptions())
    ends = [2, *said.tokens[:1]]
    monkeypatch.setattr(engine.model.model.generation_config, "eos_token_id", ends)
    with looping(engine, tokenizer) as (loop, _, _):
        ignoring, least, plain = ask(
            loop,
            want(prompts[0], 12, ignore_eos=True),
            want(prompts[0], 12, min_tokens=5),
            want(prompts[0], 12),
        )
        assert (ignoring.wait().finish, ignoring.wait().tokens) == ("length", 12)
        assert ignoring.text == said.text  # they are tokens like any other
        assert 5 <= least.wait().tokens <= 12
        assert not least.text.startswith(said.text[:3])
        assert plain.wait().tokens == 0


def test_a_stop_string_ends_no_text_before_its_least_number_of_tokens(
    engine: Engine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    full = alone(engine, tokenizer, prompts[0], 10)
    stop = (full[0],)
    with looping(engine, tokenizer) as (loop, _, _):
        early, late = ask(
            loop,
            want(prompts[0], 10, stop=stop),
            want(prompts[0], 10, stop=stop, min_tokens=10),
        )
        assert (early.text, early.wait().finish) == ("", "stop")
        assert (late.text, late.wait().finish) == (full, "length")
