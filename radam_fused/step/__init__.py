"""What one step does, in order."""
