"""evaluation of clipkit."""
