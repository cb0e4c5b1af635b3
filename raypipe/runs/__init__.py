"""The code for Ray that batch jobs share: connect, run stages of actors, and repeat until no shard is missing."""
