"""Load of the machine beside a run: processor, memory, disk, network and GPUs, by MLflow's own monitor, as `system/*` metrics."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_select.address import scrub
from lora_select.tracking.store import Store

log = logging.getLogger(__name__)
SECONDS = 10.0


@contextmanager
def watched(store: Store, run_id: str, *, node: str | None = None, seconds: float | None = None) -> Iterator[None]:
    """Sample the machine every `seconds` while the block runs; a run taken up again goes on after its last step.

    Args:
        store: from `store.prepare`.
        run_id: the run that gets the metrics; it must be RUNNING.
        node: a name for this machine where several write to one run: `system/<node>/...`.
        seconds: between samples, `SECONDS` where not given.

    A monitor that cannot start, or a server that goes away, is a warning: the work in the block is never touched.
    """
    from mlflow.system_metrics import system_metrics_monitor

    monitors_log = logging.getLogger(system_metrics_monitor.__name__)
    monitors_log.addFilter(_without_passwords)
    monitor: Any = None
    make: Any = system_metrics_monitor.SystemMetricsMonitor  # its annotations say int where fractions of a second work
    try:
        monitor = make(
            run_id,
            sampling_interval=seconds or SECONDS,
            resume_logging=True,
            node_id=node,
            tracking_uri=store.client.tracking_uri,  # the whole address: the store's own has its password hidden
        )
        monitor.start()
    except Exception as error:
        log.warning("the machine's load is not recorded (%s)", scrub(str(error))[:200])
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()
        monitors_log.removeFilter(_without_passwords)


def _without_passwords(record: logging.LogRecord) -> bool:
    """Hide what MLflow's own warnings would show of the address; keeps every record."""
    record.msg, record.args = scrub(record.getMessage()), ()
    return True
