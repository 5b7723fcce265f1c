"""What people read: pictures of a plan, tables, figures with their units."""

from dnic.report.alternatives import schedule_text, verdict_table
from dnic.report.bench import bench_table
from dnic.report.notes import plan_notes
from dnic.report.partition import draw_plan, partition_diagram
from dnic.report.planjson import plan_json
from dnic.report.probe import probe_table
from dnic.report.probe_picture import probe_svg
from dnic.report.result import result_lines
from dnic.report.tables import comparison_table, plan_table, verify_table

__all__ = [
    "bench_table",
    "comparison_table",
    "draw_plan",
    "partition_diagram",
    "plan_json",
    "plan_notes",
    "plan_table",
    "probe_svg",
    "probe_table",
    "result_lines",
    "schedule_text",
    "verdict_table",
    "verify_table",
]
