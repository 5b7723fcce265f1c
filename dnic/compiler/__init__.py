"""From a spec to a plan, from a plan to a bundle."""

from dnic.compiler.passes import (
    PASSES,
    Planned,
    check_pass,
    compile_model,
    plan_model,
)

__all__ = ["PASSES", "Planned", "check_pass", "compile_model", "plan_model"]
