"""The engine: runs, their events, the log that holds them, and the upstreams that answer."""
