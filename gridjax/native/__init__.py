"""The processor's own kernel: sweeps over a tree of small zones (`gridjax.tree`), made by Numba and called by XLA."""
