"""The processor's own kernel: sweeps over a tree of small zones (`gridjax.tree`), compiled by Numba, called from XLA."""
