"""The index job: sealed embeddings, a catalogue and predicted labels become a version of an index."""
