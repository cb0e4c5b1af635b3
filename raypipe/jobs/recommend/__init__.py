"""The recommend job: compute recommendations for many users, the same as the endpoint's, and write them as Parquet."""
