"""The sealed outputs of every batch job: plan, commit, seal, read and verify them. Plain Python, without Ray."""
