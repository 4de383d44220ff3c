"""The spectral engine: what the data asks of every layer, in one streamed pass."""
