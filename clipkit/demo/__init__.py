"""The demo and its embedded data."""
