"""From a folder of images to a model in a given time: the plan, its measurement, its configurations, its results."""
