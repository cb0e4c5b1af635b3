"""Compare recommendations with simple baselines, on watch events that nothing was fitted on. No Ray here."""
