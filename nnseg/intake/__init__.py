"""Files as they lie become a raw dataset."""
