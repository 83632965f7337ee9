"""The node: what runs here, and the processes it runs in.

`hosts` keeps the zygote and a pool of hosts; `host` is one of them as the skald sees it. User code is never imported
into this process.
"""
