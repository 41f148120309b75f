"""The gRPC interface: `*.proto` files and the code that `make protos` generates from them, beside them. Nothing here is edited
by hand but the `.proto` files; a test fails when the rest is stale.
"""
