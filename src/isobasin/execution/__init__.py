"""Engines that run a graph of tasks: in this process, in several, or on a Ray cluster."""
