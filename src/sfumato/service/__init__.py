"""A service for programs: jobs, batches across users, and the protocols that image programs use."""
