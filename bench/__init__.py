"""How long one optimizer step takes, beside the peers and the ceiling: ``python -m bench``."""
