"""Where the checkout is, and the images of the toy runs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = "shapes:train=100,test=30"
