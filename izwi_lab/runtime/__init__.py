"""The runtime: which model answers a request, where it lives in memory, and for how long.

`InferenceEngine` (service.py) is the one door for requests; `api.py` holds the package-level functions.
"""
