"""``clipkit report``: one HTML page about a run, or about two of them side by side."""
