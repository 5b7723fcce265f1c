"""One run that measures the bundle beside its alternatives."""
