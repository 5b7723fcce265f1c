"""Model files of the study, as a user would write them; options come from the environment."""
