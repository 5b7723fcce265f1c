"""Studies: what dnic does with many models, measured and written down in docs/."""
