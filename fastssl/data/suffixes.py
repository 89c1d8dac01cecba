"""Names of image files end so. In a file of its own: commands ask before numpy is imported."""

from __future__ import annotations

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
