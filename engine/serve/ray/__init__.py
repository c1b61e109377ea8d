"""The server on many machines, on Ray: `pip install 'calotype[serve,ray]'`.

An ingress takes requests over HTTP and holds no weights. Workers hold an `Engine` each, and Ray Serve starts and stops
them with the load. `map` generates the images of a file of prompts on Ray Data.

    calotype serve --ray --model demo
    serve run deploy/serve.yaml
"""

from .application import app, application
from .batch import Batch, map
from .run import run

__all__ = ["Batch", "app", "application", "map", "run"]
