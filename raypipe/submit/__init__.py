"""Send a job to a cluster by the HTTP address of its job API, and follow it: ``raypipe submit``."""
