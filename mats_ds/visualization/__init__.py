"""Pictures of clips, selections and reconstructions."""
