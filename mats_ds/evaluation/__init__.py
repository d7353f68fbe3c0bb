"""Testing models: classification, features, probes."""
