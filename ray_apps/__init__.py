"""Where LREM runs: jobs and applications on Ray. Contains no formula."""
