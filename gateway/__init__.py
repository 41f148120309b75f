"""The doors: HTTP, access and wire formats. Talks to the orchestrator only through `orchestrator.engine.Engine`."""
