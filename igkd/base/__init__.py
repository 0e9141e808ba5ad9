"""Files, errors, randomness, checks of what a stranger sent. Knows no image and no network."""
