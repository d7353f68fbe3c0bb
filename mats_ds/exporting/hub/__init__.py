"""A Hugging Face folder that selects tokens: weights, code that needs only transformers, a card."""
