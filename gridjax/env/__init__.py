"""Environments for control: the contract, the tasks, and what makes them known to others."""
