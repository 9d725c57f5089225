"""losses of clipkit."""
