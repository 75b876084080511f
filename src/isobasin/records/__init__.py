"""What was measured, line by line: one JSON object for each, in a file that only grows."""
