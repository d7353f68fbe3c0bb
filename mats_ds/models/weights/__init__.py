"""Files of weights of every kind -> models, and back."""
