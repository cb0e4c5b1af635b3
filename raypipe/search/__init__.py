"""An index of videos by their embeddings: build, search, filter, re-rank. Plain Python, without Ray."""
