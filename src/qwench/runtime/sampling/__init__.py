"""From logits to tokens: what a request may ask for, and how tokens are chosen, of one row or of all of a step."""
