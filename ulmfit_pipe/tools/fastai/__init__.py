"""Import and export of fastai's files."""
