"""HTML pages: their frame and parts as templates, charts, and the filters that templates share."""
