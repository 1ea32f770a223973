"""Models that fuse click models and text models into one score."""
