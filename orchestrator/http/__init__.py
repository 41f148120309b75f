"""What a gateway and an orchestrator that run apart say to each other over HTTP. Messages only; no sockets here.

`calls`: the methods of `Engine` as requests and answers. `feed`: a run's log as an event stream, exact to the byte. `refusal`:
an error that becomes the same exception on the other side. The client is `orchestrator.remote`, the server
`gateway.routes.internal`.
"""
