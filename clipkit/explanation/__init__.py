"""``clipkit explain``: where in an image a text is seen."""
