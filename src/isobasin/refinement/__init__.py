"""Learned alignment: the continuous factors of a model's group, trained so that the line between two models is low."""
