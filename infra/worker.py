"""`prefect worker start ...` whose worker lives on when a run is answered while its process still ends.

Prefect's worker holds the place of a run under `--limit` until the run's process is gone. A run that was suspended and is
resumed in those seconds is offered again, and Prefect 3.8.8 ends the whole worker (`this borrower is already holding
one of this CapacityLimiter's tokens`; PrefectHQ/prefect issue 11224). Here such a run is left for the next look.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, final

from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse


warnings.filterwarnings("ignore", "Type 'PatientWorker'")  # Prefect's: it takes the place of another


@final
class PatientWorker(ProcessWorker):
    """A process worker; it takes the place of Prefect's own under the type `process`."""

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        ending = self._limiter.statistics().borrowers if self._limiter else ()
        due = [offered for offered in flow_run_response if offered.flow_run.id not in ending]
        return await super()._submit_scheduled_flow_runs(due)


if __name__ == "__main__":
    from prefect.cli import app

    sys.argv[1:1] = ["worker", "start"]
    app()
