"""Networks that several methods share; arguments only."""
