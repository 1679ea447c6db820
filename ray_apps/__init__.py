"""Where LREM runs: each file is one job or one application on Ray. Holds no formula."""
