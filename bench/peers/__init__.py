"""Servers that run in environments of their own and take one call at a time (see remote.py)."""
