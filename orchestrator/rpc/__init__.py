"""The gRPC door: servicers over the same engine as every other door. What it says to clients: `protos/*.proto`."""
