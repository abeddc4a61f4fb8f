"""The local page that predicts dropped pictures."""
