"""`Model` to and from `.mnn` files. Bytes are the native codec's business; names and indices are ours."""
