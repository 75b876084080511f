"""Damaged and hostile inputs of every kind, run through every command: `python -m tests.fuzz`, or `make fuzz`."""
