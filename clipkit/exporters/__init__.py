"""exporters of clipkit."""
