"""How a benchmark measures and what it saves: plan, turns, memory groups, correctness checks, JSON results."""
