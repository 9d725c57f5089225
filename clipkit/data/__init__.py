"""data of clipkit."""
