"""A job in one folder: count the frames of every video of a bucket."""
