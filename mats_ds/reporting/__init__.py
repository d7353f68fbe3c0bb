"""Run folder -> verdict, text, JSON, HTML."""
