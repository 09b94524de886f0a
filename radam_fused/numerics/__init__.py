"""What all backends must agree on to the last bit."""
