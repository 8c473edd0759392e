"""The compiled folder: its format, how it is verified, and how it is written atomically."""
