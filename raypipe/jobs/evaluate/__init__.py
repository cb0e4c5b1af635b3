"""The evaluate job: measure an index on watch events against simple baselines."""
