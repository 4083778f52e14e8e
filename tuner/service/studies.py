"""Routes of studies: start, list, show, stop, watch."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from tuner.errors import BusyStudyError, MissingStudyError, StudyError
from tuner.pareto.probability import front_of
from tuner.service.define import define_study
from tuner.service.documents import FrontDocument, StudiesDocument, StudyDocument, TrialsDocument
from tuner.service.events import END, EventStream
from tuner.service.problems import documented
from tuner.service.requests import Missing, NewStudy, StudyName
from tuner.service.service import FoundStudy, Service, current
from tuner.store.lock import study_lock

router = APIRouter(prefix="/v1/studies", tags=["studies"])
Current = Annotated[Service, Depends(current)]
LastEventId = Annotated[
    Annotated[str, Field(pattern=rf"^({END}|[0-9]{{1,9}})$")] | Missing,
    Header(description="Of the last event that arrived."),
]


@router.post("", status_code=202, responses=documented(403, 409, 413))
def start(request: NewStudy, response: Response, service: Current) -> StudyDocument:
    """Start a study, or continue the one of this name with more trials or time.

    It waits until earlier ones have ended: one study runs at a time.
    """
    definition = define_study(request, service.settings)
    name = definition.study_name
    _check_same_question(service, name, definition.search_digest())
    _check_not_running(service, name)
    asked = request.model_copy(update={"name": name})
    document = asked.model_dump(mode="json", by_alias=True, exclude_none=True)
    service.jobs.add(name, document, service.settings.max_waiting)
    service.runner.wake()
    response.headers["Location"] = f"{router.prefix}/{name}"
    return service.find(name).document


@router.get("")
def studies(service: Current) -> StudiesDocument:
    """All studies of the store, whichever process ran them."""
    jobs = service.seen_jobs.latest()
    begun = [FoundStudy(study, jobs.pop(study.name, None)) for study in service.view.studies()]
    waiting = [FoundStudy(None, job) for job in jobs.values()]
    return StudiesDocument(studies=[found.document for found in begun + waiting])


@router.get("/{name}", responses=documented(404))
def study(name: StudyName, service: Current) -> StudyDocument:
    """One study."""
    return service.find(name).document


@router.delete("/{name}", status_code=202, responses=documented(404, 409))
def stop(name: StudyName, service: Current) -> StudyDocument:
    """Stop a study; what it found is kept, and starting it again continues it."""
    found = service.find(name)
    stopped = service.jobs.request_stop(name)
    service.runner.wake()
    if stopped is None and found.study is not None and found.under_way:
        raise HTTPException(
            409, f"study '{name}' was not started here: end process {found.study.parent_pid}"
        )
    return service.find(name).document


@router.get("/{name}/trials", responses=documented(404))
def trials(name: StudyName, service: Current) -> TrialsDocument:
    """All trials, including failed ones; none before the study has begun."""
    begun = service.find(name).study
    return TrialsDocument.of(service.view.trials(begun) if begun else ())


@router.get("/{name}/front", responses=documented(404))
def front(name: StudyName, service: Current) -> FrontDocument:
    """The trials worth choosing from; none before the study has begun."""
    begun = service.find(name).study
    if begun is None:
        return FrontDocument(objectives=[], front=[], recommended=None)
    return FrontDocument.of(front_of(begun, service.view.trials(begun)))


@router.get(
    "/{name}/events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}},
        204: {"description": "The study is over, and the client has seen its end."},
        **documented(404, 429),
    },
)
def events(name: StudyName, service: Current, last_event_id: LastEventId = None) -> Response:
    """Follow a study: events `trial`, `state` and finally `end`."""
    over = not service.find(name).under_way
    if over and last_event_id == END:
        return Response(status_code=204)
    seen = 0 if last_event_id in (None, END) else int(last_event_id or 0)
    service.streams.check()
    lines = EventStream(service, name, seen).lines()
    return StreamingResponse(service.streams.counted(lines), media_type="text/event-stream")


def _check_same_question(service: Service, name: str, digest: str) -> None:
    with contextlib.suppress(MissingStudyError):
        if service.view.study(name).search_digest != digest:
            raise BusyStudyError(
                f"study '{name}' asked something else (budget, space, objectives, limits, tasks "
                "or prompts differ): give this one another name"
            )


def _check_not_running(service: Service, name: str) -> None:
    """Raises BusyStudyError if a process that was not started here runs a study of this name: its
    job could only fail."""
    job = service.seen_jobs.latest(name).get(name)
    if job is not None and job.under_way:
        return  # the queue refuses it
    try:
        with study_lock(service.settings.storage, name):
            pass
    except StudyError as error:
        raise BusyStudyError(str(error)) from None
