"""The studio: a page in the browser on top of the service, with its own routes for runs, folders and kept images."""
