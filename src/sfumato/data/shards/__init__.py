"""Images in tar files, in the layout of WebDataset and img2dataset."""
