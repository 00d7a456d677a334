"""Files that are complete or absent: written under another name, synced and renamed; and the locks on them."""
