"""From shards to windows of encoded rows: the only package that imports pyarrow."""
