"""Helpers for tests of this package and of code that builds on it.

`tiny` makes small random transformers models of every family, `strategies` hypothesis strategies for groups, weights
and elements, `assertions` compares functions. hypothesis is imported on first use only.
"""
