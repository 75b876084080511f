"""What a checkpoint means: its attention blocks, where their tensors lie, and their symmetry groups."""
