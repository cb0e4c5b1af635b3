"""Plan, commit, seal, read and verify the output of a batch job. Plain Python, without Ray."""
