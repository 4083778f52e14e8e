"""A store with very many trials: copies of one study's trials, each with samples of its own."""

import random
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from tuner.store.database import open_database
from tuner.store.tables import ConfigurationRow, SampleRow, SentinelRow, StudyRow, TrialRow

METRICS = ("output_tps", "tpot_ms", "ttft_ms", "expert_hit_rate")
REPEATS = 3
BLOCK = 2000


def crowd(url: str, studies: int, trials: int) -> None:
    """Beside the study that is there, so many copies with so many COMPLETE trials each."""
    database = open_database(url)
    rng = random.Random(0)
    with database.engine.begin() as connection:
        one = dict(connection.execute(sa.select(StudyRow.__table__)).mappings().one())
        first = dict(connection.execute(sa.select(TrialRow.__table__)).mappings().all()[0])
        config = dict(connection.execute(sa.select(ConfigurationRow.__table__)).mappings().all()[0])
        beside = {"machine_id": one["machine_id"], "compute_ms": 1.0, "read_ms": 1.0}
        sentinel = connection.execute(sa.insert(SentinelRow).values(beside)).inserted_primary_key[0]
        number = 10_000
        for index in range(1, studies + 1):
            study_id = 1000 + index
            copy = {**one, "id": study_id, "name": f"copy-{index}"}
            connection.execute(sa.insert(StudyRow), copy)
            for start in range(0, trials, BLOCK):
                places = range(start, min(start + BLOCK, trials))
                numbers = [number + place for place in places]
                configs = [{**config, "id": n, "hash": f"{n:016d}"} for n in numbers]
                connection.execute(sa.insert(ConfigurationRow), configs)
                rows = [
                    _trial(first, study_id, place, number + place, rng.uniform(0.7, 1.0))
                    for place in places
                ]
                connection.execute(sa.insert(TrialRow), rows)
                found = _samples(numbers, one["machine_id"], sentinel, rng)
                connection.execute(sa.insert(SampleRow), list(found))
            number += trials
    database.close()


def _trial(
    first: dict[str, Any], study_id: int, place: int, number: int, quality: float
) -> dict[str, Any]:
    return {
        **first,
        "id": number,
        "study_id": study_id,
        "number": place,
        "configuration_id": number,
        "state": "COMPLETE",
        "scores": {**first["scores"], "quality": quality},
    }


def _samples(
    numbers: list[int], machine_id: int, sentinel: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    for n in numbers:
        speed = rng.uniform(5.0, 100.0)
        for repeat in range(REPEATS):
            noisy = speed * rng.uniform(0.99, 1.01)
            values = (noisy, 2000.0 / noisy, 40_000.0 / noisy, 0.5)
            for metric, value in zip(METRICS, values, strict=True):
                yield {
                    "configuration_id": n,
                    "machine_id": machine_id,
                    "trial_id": n,
                    "sentinel_id": sentinel,
                    "repeat": repeat,
                    "role": "search",
                    "metric": metric,
                    "value": value,
                    "unit": "x",
                }
