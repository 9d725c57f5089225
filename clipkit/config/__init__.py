"""config of clipkit."""
