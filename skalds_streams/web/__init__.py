"""The status page, the JSON API and the live stream: aiohttp handlers over the view, mounted on the application that
Faust serves.

Rules: everything shown is read from the view or handed in by `context.WebContext`; nothing here writes, decides or
knows Faust; every value of a task leaves masked; every request passes the guard.
"""
