"""Targets: a store's database that somebody else wrote, as commands, service and dashboard read it.

An input is a JSON object of tables: {name: {"columns": [[name, declared type]], "rows": [[...]]}}.
Objects and lists in a row are stored as JSON text, {"$blob": hex} as bytes. What describes no
tables is the file itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from streamlit.errors import StreamlitAPIException

from dashboard.frames.budgets import curve_frame
from dashboard.frames.experts import activations_frame, layers_frame, rates_frame
from dashboard.frames.front import members_frame, origin_frame, points_frame, split_frame
from dashboard.frames.history import history_frame
from dashboard.frames.machine import exports_frame, machine_frame, model_frame, versions_frame
from dashboard.frames.predictions import error_band, predicted_frame
from dashboard.frames.studies import (
    deployments_frame,
    done_fraction,
    progress_line,
    running_frame,
    spent_frame,
    studies_frame,
)
from dashboard.frames.trials import failures_frame, parallel_frame, trials_frame
from dashboard.measured import measured_front, read_points
from tests.fuzz.commands import CODES
from tests.fuzz.documents import Pairs, as_tree, read_json, write_bytes
from tests.fuzz.oracle import Arena, FindingError, Run
from tests.fuzz.target import Shape, Target
from tests.upgrade.folders import fixture
from tuner.__main__ import run as tune
from tuner.deployment import export
from tuner.deployment.export import render_format
from tuner.deployment.formats.registry import FORMATS
from tuner.errors import TunerError
from tuner.folders import default_storage
from tuner.pareto.budget_curve import fronts_by_budget
from tuner.pareto.limits import own_limits
from tuner.pareto.probability import front_of, on_front
from tuner.service.best import BestConfigs, ConfigRequest
from tuner.service.documents import FrontDocument, StudiesDocument, TrialsDocument
from tuner.service.metrics import ServiceMetrics
from tuner.service.requests import Goal
from tuner.service.service import FoundStudy
from tuner.store.database import Database, open_read_only
from tuner.store.overview import Overview, TrialFilter
from tuner.store.repository import Store
from tuner.store.service import Jobs, Tokens, ended_trials, revision

MOST_SAMPLES = 40  # rows of a table in a seed
EXTRA = (
    Pairs([["$blob", "00ff"]]), Pairs([["$blob", "7b7d"]]), "[1]", '"x"', "1", "null", "{}", "[]",
    "{",
    "[" * 3000, "[" * 3000 + "]" * 3000, '{"a":' * 70 + "1" + "}" * 70, '{"a": NaN}', "1e999",
    '{"a": 1e999}', '{"a": "b"}', '{"a": {"b": 1}}', "2026-13-45", "2026-11-30", "RUNNING",
    "COMPLETE",
    "INFEASIBLE", "FINISHED", "GONE", "QUEUED", "confirm", "INTEGER", "TEXT", "BLOB", "REAL",
    "JSON",
    "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999", "study", "trial", "quality", "output_tps",
)  # fmt: skip


def _added(tables: dict[str, Any]) -> None:
    """Rows of the tables that the kept store has none of, and a running trial."""
    when = "2026-11-30 13:34:52.245357"
    names = {name: [column for column, _ in found["columns"]] for name, found in tables.items()}

    def put(table: str, **values: Any) -> None:
        tables[table]["rows"].append([values.get(name) for name in names[table]])

    content = "schema: expertune/v1\nprovenance: {versions: {torch: '2'}, commit: a}\n"
    put("export", id=1, study_id=1, trial_id=1, pick="knee", path="/x/y.yaml", content=content,
        created=when)  # fmt: skip
    put("job", id=1, study_name="small", state="DONE", request={"model": "m"}, host="h",
    created=when,
        updated=when)  # fmt: skip
    put("job", id=2, study_name="next", state="QUEUED", request={"model": "m"}, created=when,
        updated=when)  # fmt: skip
    drift = {"routing": 0.1, "retune": False}
    payload = {"output_tokens": 5, "tpot_ms": 1.5, "expert_hit_rate": 0.5, "drift": drift}
    put("telemetry", id=1, deployment="small/0", payload=payload, created=when)
    study = tables["study"]["rows"][0]
    study[names["study"].index("progress")] = {
        "stage": "measuring", "done": 1, "total": 3, "stage_s": 1.5, "elapsed_s": 9.0, "trial": 2,
        "trials_done": 2, "trials_planned": None, "trial_left_s": 1.0, "study_left_s": 5.0,
        "time": "2026-11-30T13:34:52+00:00",
    }  # fmt: skip
    definition = study[names["study"].index("definition")]
    definition["budget"]["curve"] = [definition["budget"]["vram_bytes"] // 2]
    place = names["trial"].index("predicted")
    for row in tables["trial"]["rows"]:
        row[place] = {"output_tps": 90.5, "output_tps_low": 80.0, "output_tps_high": 200.0}


@cache
def kept_store() -> bytes:
    """The store of a small study, as a program of this schema wrote it."""
    sql = (fixture("store", "0101") / "store.sql").read_text("utf-8")
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(sql)
        query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
        tables: dict[str, Any] = {}
        for (name,) in connection.execute(query).fetchall():
            columns = [row[1:3] for row in connection.execute(f'PRAGMA table_info("{name}")')]
            rows = connection.execute(f'SELECT * FROM "{name}" LIMIT {MOST_SAMPLES}').fetchall()
            tables[name] = {
                "columns": [list(column) for column in columns],
                "rows": [[_parsed(value) for value in row] for row in rows],
            }
    _added(tables)
    return json.dumps(tables).encode()


def _parsed(value: Any) -> Any:
    """JSON texts as trees, so that what is inside them is edited too."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def write_store(path: Path, data: bytes) -> None:
    """The database that an input describes."""
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        name.unlink(missing_ok=True)
    try:
        tables = json.loads(data).items()
    except (ValueError, AttributeError, RecursionError):
        path.write_bytes(data)
        return
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        for name, found in tables:
            with contextlib.suppress(*_NO_TABLE):
                _write_table(connection, name, found["columns"], found["rows"])
        connection.execute("COMMIT")


_NO_TABLE = (sqlite3.Error, TypeError, ValueError, KeyError, OverflowError, RecursionError)


def _write_table(
    connection: sqlite3.Connection, name: str, columns: Sequence[Any], rows: Sequence[Any]
) -> None:
    declared = ", ".join(f"{_quoted(column)} {_typed(kind)}" for column, kind in columns)
    connection.execute(f"CREATE TABLE {_quoted(name)} ({declared})")
    places = ", ".join("?" * len(columns))
    for row in rows:
        with contextlib.suppress(*_NO_TABLE):
            values = [_bound(value) for value in row]
            connection.execute(f"INSERT INTO {_quoted(name)} VALUES ({places})", values)


def _quoted(name: Any) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def _typed(kind: Any) -> str:
    """A declared type: words and sizes alone, so that it is no constraint."""
    return "".join(char for char in str(kind) if char.isalnum() or char in "(), ")[:40]


def _bound(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"$blob"}:
        return bytes.fromhex(value["$blob"])
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return str(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


def of_store(*readers: Callable[[Path], None]) -> Callable[[Arena], Any]:
    """Opens a target of readers, each of which is given the store; it must stay as it is."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        path = Path(default_storage().removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        stack = contextlib.ExitStack()  # asks git, of a folder that no input names
        stack.enter_context(mock.patch.object(export, "source_commit", return_value=None))

        def run(data: bytes) -> None:
            write_store(path, data)
            before = path.read_bytes()
            errors: list[TunerError] = []
            for reader in readers:
                try:
                    reader(path)
                except TunerError as error:
                    errors.append(error)
                except StreamlitAPIException as error:
                    raise FindingError(str(error)) from error
            if path.read_bytes() != before:
                raise FindingError("a store that is read stays as it is")
            if errors:
                raise errors[0]

        with stack:
            yield run

    return opened


def _command(*words: str) -> Callable[[Path], None]:
    """A command, which ends with a code that it documents and with a sentence."""

    def read(path: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = tune(list(words))
        said = err.getvalue()
        if code not in CODES or "Traceback" in said or "tune: unexpected " in said:
            raise FindingError(f"{' '.join(words)}: exit code {code}: {said[-500:]}")
        if "--json" in words and out.getvalue().strip():
            json.loads(out.getvalue())

    return read


def _opened(read: Callable[[Database], None]) -> Callable[[Path], None]:
    """A reader of an open database, on one read snapshot."""

    def reader(path: Path) -> None:
        database = open_read_only(f"sqlite:///{path}")
        with contextlib.closing(database), database.read_snapshot() as snapshot:
            read(snapshot)

    return reader


def _service(database: Database) -> None:
    """What the REST service's routes read, as they answer it."""
    store, jobs = Store(database), Jobs(database)
    latest = jobs.latest()
    revision(database)
    Tokens(database).all()
    Tokens(database).find(1)
    jobs.count_by_state()
    ServiceMetrics(database).text()
    studies = store.studies()
    found = [FoundStudy(study, latest.pop(study.name, None)) for study in studies]
    waiting = [FoundStudy(None, job) for job in latest.values()]
    documents = [one.document for one in found + waiting]
    StudiesDocument(studies=documents).model_dump_json()
    for study in studies:
        trials = store.trials(study)
        TrialsDocument.of(trials).model_dump_json()
        FrontDocument.of(front_of(study, trials)).model_dump_json()
        TrialsDocument.of(ended_trials(database, study.id, 0)).model_dump_json()
        for goal in get_args(Goal):
            BestConfigs(store).find(ConfigRequest(study.model, "cpu", 10**12, goal))


def _exports(database: Database) -> None:
    """Every format of the recommended trial."""
    store = Store(database)
    for study in store.studies():
        front = front_of(study, store.trials(study))
        if front.members:
            for name in FORMATS:
                render_format(name, study, front, front.knee)


def _dashboard(database: Database) -> None:
    """What the dashboard's pages read."""
    store, overview = Store(database), Overview(database)
    studies_frame(store.studies())
    deployments_frame(store.telemetry())
    for study in store.studies():
        objectives = tuple(study.definition["objectives"])
        progress_line(study)
        done_fraction(study)
        spent_frame(study)
        own_limits(study)
        running_frame(overview.running(study))
        machine_frame(study.machine)
        model_frame(study)
        versions_frame(overview.versions(study))
        exports_frame(overview.exports(study))
        failures_frame(overview.failures(study))
        for setting in overview.settings(study):
            for value in overview.values(study, setting):
                overview.count(study, TrialFilter(setting=setting, value=value))
        points = read_points(database, study, objectives, with_budgets=True)
        for name in objectives:
            points.best(name)
        measured = measured_front(database, study)
        points_frame(measured.front, measured.probability)
        members_frame(measured.front, measured.probability)
        trials = store.trials(study)
        trials_frame(trials, objectives)
        parallel_frame(trials, objectives)
        history_frame(study, trials)
        curve_frame(fronts_by_budget(study, trials))
        on_front(measured.front)
        for name in objectives:
            error_band(predicted_frame(trials, name))
        for trial in trials:
            rates_frame(trial)
            split_frame(trial)
            origin_frame(trial)
            if trial.configuration_id is not None:
                use = overview.expert_use(trial.configuration_id, study.machine_id)
                if use is not None:
                    activations_frame(use)
                    layers_frame(use)


TABLES = Shape(read_json, write_bytes, extra=EXTRA)


def _seeds() -> list[bytes]:
    return [
        kept_store(),
        write_bytes(as_tree({"study": {"columns": [["id", "X"]], "rows": [[1]]}})),
    ]


TARGETS = (
    Target("store_doctor", of_store(_command("doctor", "--store", "--json")), _seeds, TABLES,
           cases=25, most_s=8),
    Target(
        "store_commands",
        of_store(_command("studies", "--json"), _command("studies"), _command("show", "small",
        "--json"),
                 _command("show", "small"), _command("export", "small", "--json")),
        _seeds, TABLES, cases=15, most_s=12,
    ),
    Target("store_service", of_store(_opened(_service), _opened(_exports)), _seeds, TABLES,
    cases=20,
           most_s=8),
    Target("store_dashboard", of_store(_opened(_dashboard)), _seeds, TABLES, cases=20, most_s=8),
)  # fmt: skip
