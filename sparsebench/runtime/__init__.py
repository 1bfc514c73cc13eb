"""Measures latency and memory of a model under an engine: one process per rank, by phase, dense beside variant."""

from sparsebench.runtime.measure import measure_latency, measure_memory, measure_pair
from sparsebench.runtime.refusals import check_model, check_supported, engine_refusal, position_refusal
from sparsebench.runtime.results import LatencyResult, MemoryResult, Setting, Workload

VERSION = 3
MEMORY_VERSION = 2
"""Raise it when only the way memory is measured changes; VERSION also covers the timings."""

__all__ = [
    "MEMORY_VERSION", "VERSION", "LatencyResult", "MemoryResult", "Setting", "Workload", "check_model", "check_supported",
    "engine_refusal", "measure_latency", "measure_memory", "measure_pair", "position_refusal",
]  # fmt: skip
