"""Families, one a file: each builds a `Task`."""
