"""The compiler's own graph: operations, values, and what crosses a gap."""
