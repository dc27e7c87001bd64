"""Small datasets of the synthetic world in the real schemas of the benchmarks.

``write_benchmarks`` makes the folder that ``unigame evaluate --data-root`` takes. The loaders,
prompts, parsers and metrics that read it are those of the real data; only the pictures are small.
"""

from .write import NAMES, NEW_TASK, OOD, write_benchmarks

__all__ = ["NAMES", "NEW_TASK", "OOD", "write_benchmarks"]
