"""Build an index of video embeddings, search it, and filter and re-rank the results. Plain Python, without Ray."""
