"""Whole models: the residual stream and all blocks together."""
