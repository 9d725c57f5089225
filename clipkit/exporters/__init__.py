"""Exporters: an encoder to files that another program loads, each with a parity report."""
