"""What went wrong in a conversion: known defects, each a transformation of a block's roles or of one tensor."""
