"""AutoPalette: a data set distilled into a few synthetic images per class, in few colours."""
