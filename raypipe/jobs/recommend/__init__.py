"""The recommend job: write the recommendations that the endpoint would return for many users as Parquet."""
