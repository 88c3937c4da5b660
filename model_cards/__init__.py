"""Model cards: one template, one file of facts per variant."""
