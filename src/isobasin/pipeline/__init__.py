"""Align, apply, verify: the only place where symmetry, architectures, checkpoints and matching meet."""
