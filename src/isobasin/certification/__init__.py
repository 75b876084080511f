"""Certificates: that a stated symmetry group is all that a block's function doesn't see, by counting directions."""
