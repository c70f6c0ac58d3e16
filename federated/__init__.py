"""Federated learning over clients that keep their data.

This package will hold averaging as collectives, the privacy mechanisms and their accounting, for
any pytree of parameters. Nothing is here yet: it defines no names.
"""
