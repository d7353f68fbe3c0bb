"""Training copies and segments of videos."""
