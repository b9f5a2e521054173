"""Training and predicting on a Dask cluster: the only package that imports dask."""
