"""Files that `export` copies beside the weights, for `trust_remote_code=True`.

They run where transformers is installed and ffn_alloc need not be; this package never imports
them.
"""
