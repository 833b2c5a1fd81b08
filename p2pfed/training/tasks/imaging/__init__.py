"""Images of two and three dimensions, classified or segmented, through MONAI."""
