"""What batch jobs share of Ray: connecting, stages of actors, and the rounds that leave no shard undone."""
