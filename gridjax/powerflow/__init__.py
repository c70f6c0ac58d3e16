"""The power flow: load models, the two methods, `solve`, and results."""
