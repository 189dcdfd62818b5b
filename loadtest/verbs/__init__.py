"""The benchmarks' command line, one file per verb. What is heavy is imported when a verb runs, so help is quick."""
