"""What a benchmark steps: lists of parameter shapes."""
