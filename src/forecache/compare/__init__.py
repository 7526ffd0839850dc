"""The comparison page: two plans are picked, and their images are seen side by side."""
