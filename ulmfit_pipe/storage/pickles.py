"""How pickled files begin and what they are called: they can run code when read, so they are refused."""

PICKLE_STARTS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch.save's zip, pickle
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pth", ".pt", ".bin", ".ckpt")
