"""Readers and writers, one format a module: `opendss` and `json`."""
