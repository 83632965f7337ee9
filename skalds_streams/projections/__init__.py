"""What the outside sees beside the page: Redis keys and Prometheus metrics. Projections subscribe; they never write
back, and nothing waits for them.
"""
