"""Plan to bundle: the emitted files. Decides nothing."""
