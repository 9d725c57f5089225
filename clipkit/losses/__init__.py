"""Losses: features of a step to a scalar, one file, one idea, one paper.

Import them from their files: ``base`` (the contract), ``tiled`` (the engine), ``infonce``.
"""
