"""Image sources: from the value of `--images` to decoded pictures with labels.

`open.open_images` takes "cifar10", "parquet:URI[,label=COLUMN][,image=COLUMN]", "folder:PATH" or "shapes[:train=N,test=N,seed=N]" and
gives an `ImageSource`. An image's id is its index in its split. A source holds no pictures, so it is small and can be pickled; each worker
reads the ids that it needs.
"""
