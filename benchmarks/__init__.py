"""Measurements of the library, each a command; see README.md in this folder."""
