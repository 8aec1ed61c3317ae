"""Images in tables and databases: Parquet files, LMDB."""
