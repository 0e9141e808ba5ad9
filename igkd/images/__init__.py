"""Image sources: from a name to decoded pictures with labels.

`open_images("cifar10" | "parquet:URI[,label=COLUMN][,image=COLUMN]" | "folder:PATH" | "shapes[:train=N,test=N,seed=N]")` in `open` gives an
`ImageSource`. An image's id is its index in the split's own order. Sources are small picklable values: a worker reads just the ids it is
asked for.
"""
