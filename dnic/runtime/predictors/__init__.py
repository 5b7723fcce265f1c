"""The kinds of predictors that dnic brings, one a file: see `dnic.runtime.registry`."""
