"""The recommend job: what the endpoint would answer each of many users, as Parquet."""
