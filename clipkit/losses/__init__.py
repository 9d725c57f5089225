"""Losses: features of a step to a scalar, one file, one idea, one paper.

Import them from their files: ``base`` is the contract, ``tiled`` the engine under losses over pairs, ``build`` makes them from a configuration.
"""
