"""A model and all that is known of it, as a repository of the Hugging Face hub."""
