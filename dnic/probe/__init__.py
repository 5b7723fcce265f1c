"""How well gradients can be predicted at every candidate cut: one short run, measured."""
