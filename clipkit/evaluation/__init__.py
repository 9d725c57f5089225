"""Evaluators: an encoder and a data set to a flat dict of figures, on all ranks at once."""
