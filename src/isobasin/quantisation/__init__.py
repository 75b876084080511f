"""Rounding of weights to a few bits, and the gauge in which it costs a model least."""
