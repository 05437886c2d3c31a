"""Array mathematics of the papers, free of Flax: schedules, forward processes, losses."""
