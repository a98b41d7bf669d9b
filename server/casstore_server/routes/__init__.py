"""What each resource does: read the request, ask the engine through the bridge, answer.

A route holds no rule of its own.  The order is the same everywhere: who is asking and may they, what do they ask (bounds and
spelling), do it, answer.
"""
