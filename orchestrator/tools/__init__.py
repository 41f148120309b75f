"""Tools of agents: Python functions and MCP servers, offered to models and called on their behalf."""
