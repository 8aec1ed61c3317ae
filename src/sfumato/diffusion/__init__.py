"""Stage 2, the maths: schedules, the forward process, prediction kinds, the objective."""
