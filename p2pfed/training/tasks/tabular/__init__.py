"""Two classes from a table, CSV or Parquet."""
