"""What a user asks for, one file per verb: where symmetry, architectures, checkpoints and matching meet."""
