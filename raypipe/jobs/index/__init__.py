"""The index job: build a version of an index from sealed embeddings, a catalogue and predicted labels."""
