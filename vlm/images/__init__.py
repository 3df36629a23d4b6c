"""Image files: opening, preprocessing, finding."""
