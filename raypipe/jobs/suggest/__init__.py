"""The suggest job: which videos to label next, and which labels to check."""
