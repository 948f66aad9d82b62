"""Result files as a store: DuckDB reads them where they lie, as JSON or compacted to Parquet."""
