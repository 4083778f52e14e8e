"""More processes that run trials of a study, on this machine or a Ray cluster; must not search themselves."""
