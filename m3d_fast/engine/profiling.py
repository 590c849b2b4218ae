"""How the time of an iteration is spent: ``--profile``."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger("m3d_fast")

# named by record_function where the work is queued; compiled, augmentation is part of the networks
RANGES = (
    "loader wait",
    "copy",
    "augmentation",
    "network real",
    "network synthetic",
    "MMD",
    "backward",
    "update",
)
COLD, WARM_UP, ACTIVE = 3, 1, 3  # iterations: skipped, discarded, recorded


@contextlib.contextmanager
def profile_iterations(folder: Path, enabled: bool) -> Iterator[Callable[[], None]]:
    """Record a few warm iterations; yield a function to call after each iteration.

    Writes ``trace.json`` (for chrome://tracing or Perfetto) and ``profile.txt`` into ``folder``.
    """
    if not enabled:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    log.info("profiling iterations %d to %d", COLD + WARM_UP + 1, COLD + WARM_UP + ACTIVE)

    def write(record: profile) -> None:
        record.export_chrome_trace(str(folder / "trace.json"))
        (folder / "profile.txt").write_text(_format_table(record), encoding="utf-8")
        log.info("profile: %s, trace: %s", folder / "profile.txt", folder / "trace.json")

    phases = schedule(wait=COLD, warmup=WARM_UP, active=ACTIVE, repeat=1)
    with profile(
        activities=activities, schedule=phases, on_trace_ready=write, acc_events=True
    ) as record:
        yield record.step
    if not (folder / "profile.txt").exists():
        log.warning("no profile: the run ended before iteration %d", COLD + WARM_UP + ACTIVE)


def _format_table(record: profile) -> str:
    """Milliseconds per iteration of every range, and the most expensive operators."""
    # a range has a row of the host, which knows the kernels it launched, and one of the GPU
    rows = [event for event in record.key_averages() if event.device_type == DeviceType.CPU]
    events = {event.key: event for event in rows}
    lines = [f"{'range':<18} {'calls':>6} {'host ms':>10} {'GPU ms':>10}   per iteration"]
    for name in RANGES:
        if name not in events:
            continue
        event = events[name]
        host, device = (
            time / 1e3 / ACTIVE for time in (event.cpu_time_total, event.device_time_total)
        )
        lines.append(f"{name:<18} {event.count // ACTIVE:>6} {host:>10.2f} {device:>10.2f}")
    sort = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    operators = record.key_averages().table(sort_by=sort, row_limit=25, max_name_column_width=60)
    return "\n".join([*lines, "", f"operators, over {ACTIVE} iterations", operators, ""])
