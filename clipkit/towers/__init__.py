"""Towers: one field of a batch to features, and the temperature of a pair of fields.

Import the parts from their files: ``base`` (the contract), ``towers`` (all towers of a model), ``scale`` (the temperature) and
``open_clip`` (the one file that knows open_clip).
"""
