"""What a benchmark compares: FusedRAdam, the baselines, and the bandwidth roofline."""
