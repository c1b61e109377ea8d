"""What every API of the service shares: the `Service`, its settings and limits, keys, kept files, errors and metrics.

It knows no path of a URL: the routes are in `calotype.serve.web.routes`, `openai` and `a1111`.
"""

from ...service_settings import ServiceSettings
from .errors import ClientGone, HTTPError, error_response
from .service import Service

__all__ = ["ClientGone", "HTTPError", "Service", "ServiceSettings", "error_response"]
