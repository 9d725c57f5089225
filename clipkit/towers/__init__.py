"""towers of clipkit."""
