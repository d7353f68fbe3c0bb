"""Reading video: manifest, sampling, decoding, pipeline."""
