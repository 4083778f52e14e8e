"""Measures a deployed config afresh on this machine, in a fresh process.

In: a deployment, a session. Out: a Verification (verdict.py).
"""

from __future__ import annotations

from collections.abc import Callable

from engine.contract.report import Report
from engine.contract.statistics import relative_half_width
from tuner.definition.study import Repeats
from tuner.deployment.document import Deployment
from tuner.deployment.verdict import VERIFIED, Verification, judge, values_of
from tuner.engine_client.session import EngineSession
from tuner.errors import DeploymentError


def verify(
    deployment: Deployment, session: EngineSession, repeats: Repeats, notify: Callable[[str], None]
) -> Verification:
    """Measures the deployed config, to the interval of `repeats`, and compares.

    session: a new one, so that the process is fresh. Raises WorkerError if the config does not run
    here, DeploymentError if the file states nothing to compare with.
    """
    if not set(VERIFIED) & set(deployment.measured):
        raise DeploymentError(
            f"the file states neither of {', '.join(VERIFIED)} under 'measured': there is nothing "
            "to compare with"
        )
    config = deployment.config()
    session.configure(config)
    workload = deployment.workload.to_workload()
    reports: list[Report] = []
    while len(reports) < repeats.max:
        if len(reports) >= repeats.min and _steady(reports, repeats.half_width):
            break
        number = len(reports)
        notify(f"measuring, repeat {number + 1}")
        reports.append(
            session.measure(
                workload, repeats=1, warm_up=not number, seed=deployment.provenance.seed + number
            )
        )
    return judge(deployment.measured, reports, config.budget.vram_bytes)


def _steady(reports: list[Report], half_width: float) -> bool:
    found = (values_of(reports, name) for name in VERIFIED)
    return all(relative_half_width(values) <= half_width for values in found if values)
