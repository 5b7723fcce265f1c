"""The exact partition: where to cut, what happens at each cut and which devices a stage runs on.

networkx and scipy have no bottleneck partition with costs on the cuts. The dynamic programme is
that of PipeDream (SOSP 2019, section 3.1), turned around: instead of the best step of every prefix,
which looks at every pair of gaps, it decides whether a step is possible, which looks at every gap,
and bisects on the step. Numbers in, gaps out: nothing here knows torch, models or names.
"""

from dnic.partition.exact.problem import DeviceClass, Option, Partition, Problem, Solution
from dnic.partition.exact.solve import solve_exact

__all__ = ["DeviceClass", "Option", "Partition", "Problem", "Solution", "solve_exact"]
