"""Story 2: images, from folders to a classifier and its predictions."""
