"""What the plugins for serving engines share. Nothing here imports an engine."""
