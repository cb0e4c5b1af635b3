"""What ``raypipe demo`` adds to the jobs: clips, an S3 server, and the sequence of commands."""
