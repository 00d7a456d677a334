"""Around a trained model: import and export, inspection, packaging."""
