"""The needs of a run, before it runs."""
