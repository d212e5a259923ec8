"""The embedded corpus: real text that is there wherever Python is, with no network.

`corpus` lists its documents, `builder` is the TFDS builder over them, and `store` keeps one
built copy per content below a cache folder.
"""
