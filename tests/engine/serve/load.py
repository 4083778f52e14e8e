"""Clients that ask a server in every way at once, and what they saw.

Greedy questions whose right answers are known, sampled ones, wrong ones, bursts, clients that hang
up, and a scraper of metrics. Nothing is asserted while it runs: Seen has what there is to assert.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.serve.oracle import Answer, Question, tokens_of

ANSWERED = {"200", "complete", "left"}
REFUSED = "429"
SAMPLINGS: Sequence[dict[str, Any]] = (
    {"temperature": 1},
    {"temperature": 0.7, "top_p": 0.9, "seed": 7},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.02, "n": 2},
    {"temperature": 1, "frequency_penalty": 0.5, "presence_penalty": 0.5, "stop": [". ", "\n\n"]},
    {"temperature": 0, "repetition_penalty": 1.2, "logit_bias": {"7": -5.0}},
)
WRONG: Sequence[tuple[str, str, dict[str, Any], int]] = (
    ("POST", "/v1/completions", {"json": {"prompt": "a", "temperature": 9}}, 400),
    ("POST", "/v1/completions", {"json": {"prompt": "a", "no_such_field": 1}}, 400),
    ("POST", "/v1/completions", {"json": {"prompt": "a " * 5000, "max_tokens": 4}}, 400),
    ("POST", "/v1/completions", {"json": {"prompt": ["a"] * 8, "n": 8}}, 400),
    ("POST", "/v1/chat/completions", {"json": {"messages": []}}, 400),
    ("POST", "/v1/chat/completions", {"content": b'{"messages": [{'}, 400),
    ("POST", "/v1/completions", {"json": {"model": "other", "prompt": "a"}}, 404),
    ("GET", "/v1/nothing", {}, 404),
    ("GET", "/v1/completions", {}, 405),
    ("POST", "/v1/completions", {"content": b" " * 300_000}, 413),
)


@dataclass
class Seen:
    """What the clients saw. counts: answers by status, streams by their end; wrong: questions whose
    answer was wrong; first_s, gap_s: from a request to its first piece, from a piece to the next;
    freed_s: from hanging up until the server had ended the sequence."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    compared: int = 0
    near_ties: int = 0
    first_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    freed_s: list[float] = field(default_factory=list)
    scrapes: int = 0


class Load:
    """A server under load. answers: the right ones; longest: tokens of the longest answer."""

    def __init__(
        self, http: httpx.AsyncClient, answers: Mapping[Question, Answer], longest: int
    ) -> None:
        self.http, self.answers, self.longest = http, answers, longest
        self.seen = Seen()
        self.prompts = [one.prompt for one in answers]
        self._leaving = asyncio.Lock()

    async def run(self, clients: int, seconds: float) -> Seen:
        """So many clients for so long; returns once all of them have ended."""
        until_s = self.now() + seconds
        asking = [self._client(random.Random(n), until_s) for n in range(clients)]
        await asyncio.gather(*asking, self._scraper(until_s))
        return self.seen

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _client(self, rng: random.Random, until_s: float) -> None:
        kinds: dict[Callable[[random.Random], Awaitable[None]], int] = {
            self.ask_known: 60, self.ask_sampled: 20, self.leave: 6, self.ask_wrong: 10,
            self.burst: 1, self.rest: 3,
        }  # fmt: skip
        while self.now() < until_s:
            (kind,) = rng.choices(list(kinds), list(kinds.values()))
            await kind(rng)

    async def ask_known(self, rng: random.Random) -> None:
        """A greedy question: its answer is compared, token by token where it has its tokens."""
        question = rng.choice(list(self.answers))
        with_tokens = rng.random() < 0.5
        body = question.body(with_tokens, stream=rng.random() < 0.7)
        choices = await self._send(question.route, body, rng)
        if choices is None:
            return
        (choice,) = choices
        tokens = choice.tokens if with_tokens else None
        verdict = self.answers[question].verdict(choice.text, tokens)
        self.seen.compared += 1
        self.seen.near_ties += verdict == "near tie"
        if verdict == "wrong":
            right = self.answers[question].text
            self.seen.wrong.append(f"{question}: {choice.text!r} instead of {right!r}")

    async def ask_sampled(self, rng: random.Random) -> None:
        """A question whose answer is left to chance: it must come whole."""
        question = Question(rng.choice(self.prompts), rng.randint(1, 40), rng.random() < 0.5)
        body = question.body(stream=rng.random() < 0.7) | rng.choice(SAMPLINGS)
        await self._send(question.route, body | {"ignore_eos": False}, rng)

    async def ask_wrong(self, rng: random.Random) -> None:
        """A request that has to be refused."""
        method, route, body, status = rng.choice(WRONG)
        answer = await self.http.request(method, route, **body)
        right = answer.status_code == status
        self.seen.counts["refused" if right else f"{status}: {answer.status_code}"] += 1

    async def burst(self, rng: random.Random) -> None:
        """More at once than the queue takes: 200 or 429."""
        asked = [Question(rng.choice(self.prompts), 4, False) for _ in range(8)]
        bodies = [one.body(n=8, temperature=1) for one in asked]
        sent = (self._send(asked[0].route, body, rng, wait=False) for body in bodies)
        await asyncio.gather(*sent)

    async def rest(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0.2, 1.0))

    async def leave(self, rng: random.Random) -> None:
        """Hang up on a long answer, whose end is awaited in the metrics: so one at a time."""
        async with self._leaving:
            before = await self._cancelled()
            question = Question(rng.choice(self.prompts), self.longest, rng.random() < 0.5)
            if not await self._hang_up(question, rng):
                return
            left_s = self.now()
            while await self._cancelled() == before and self.now() < left_s + 30:
                await asyncio.sleep(0.01)
            self.seen.freed_s.append(self.now() - left_s)
            self.seen.counts["left"] += 1

    async def _hang_up(self, question: Question, rng: random.Random) -> bool:
        """Leave a stream after a few pieces, or an answer before it comes; False: refused."""
        if rng.random() < 0.3:
            asking = self.http.post(question.route, json=question.body())
            try:
                answer = await asyncio.wait_for(asking, rng.uniform(0.3, 1.5))
            except TimeoutError:
                return True
            return self._count_refused(answer)
        pieces = rng.randint(1, 8)
        body = question.body(stream=True)
        async with self.http.stream("POST", question.route, json=body) as answer:
            if answer.status_code != 200:
                return self._count_refused(answer)
            async for line in answer.aiter_lines():
                pieces -= bool(line)
                if not pieces:
                    return True
        return self._count_refused(answer)

    def _count_refused(self, answer: httpx.Response) -> bool:
        self.seen.counts[str(answer.status_code)] += 1
        return False

    async def _cancelled(self) -> float:
        return (await self._metrics())[("expertune_sequences_total", "cancelled")]

    async def _metrics(self) -> dict[tuple[str, str], float]:
        """Samples by name and by the label `end`."""
        text = (await self.http.get("/metrics")).text
        return {
            (sample.name, sample.labels.get("end", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def _scraper(self, until_s: float) -> None:
        """Counters only grow."""
        before: dict[tuple[str, str], float] = {}
        while self.now() < until_s:
            found = await self._metrics()
            for key in (("expertune_sequences_total", end) for end in ("finished", "cancelled")):
                if found[key] < before.get(key, 0):
                    self.seen.counts[f"{key} fell"] += 1
            if failed := found[("expertune_sequences_total", "failed")]:
                self.seen.counts["failed"] = int(failed)
            before = found
            self.seen.scrapes += 1
            await asyncio.sleep(0.5)

    async def _send(
        self, route: str, body: dict[str, Any], rng: random.Random, *, wait: bool = True
    ) -> list[Received] | None:
        """The choices of an answer, None if it was refused; a stream that tears is counted."""
        asked_s = self.now()
        choices = [Received() for _ in range(body.get("n", 1))]
        async with self.http.stream("POST", route, json=body) as answer:
            if answer.status_code == 200 and body.get("stream"):
                end = await self._read_stream(answer, choices, asked_s)
            else:
                await answer.aread()
                end = str(answer.status_code)
                for choice in answer.json()["choices"] if end == "200" else ():
                    choices[choice["index"]].add(choice)
        self.seen.counts[end] += 1
        if end == REFUSED and wait:
            await asyncio.sleep(rng.uniform(0.2, 0.6))
        return choices if end in ANSWERED else None

    async def _read_stream(
        self, answer: httpx.Response, choices: list[Received], asked_s: float
    ) -> str:
        last, before_s = "", 0.0
        async for line in answer.aiter_lines():
            if not line:
                continue
            last = line
            event = {} if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))
            added = [choices[one["index"]].add(one) for one in event.get("choices", ())]
            if any(added):
                now_s = self.now()
                if before_s:
                    self.seen.gap_s.append(now_s - before_s)
                else:
                    self.seen.first_s.append(now_s - asked_s)
                before_s = now_s
        if last != "data: [DONE]" or not all(choice.finished for choice in choices):
            return f"torn: {last[:200]}"
        return "complete"


@dataclass
class Received:
    """A choice as it came, in one piece or in many."""

    text: str = ""
    tokens: tuple[str, ...] = ()
    finished: bool = False

    def add(self, choice: dict[str, Any]) -> bool:
        """Take a choice or a chunk of one; whether it brought text or an end."""
        message = choice.get("message") or choice.get("delta") or {}
        text = message.get("content") or choice.get("text") or ""
        self.text += text
        self.tokens += tokens_of(choice)
        self.finished |= choice.get("finish_reason") is not None
        return bool(text) or self.finished
