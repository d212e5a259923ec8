"""To and from Hugging Face formats."""
