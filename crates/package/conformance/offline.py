"""For the Sigstore conformance suite without a network: an unsigned identity token, which only its signing tests would use."""

import base64
import types

import urllib3

claims = base64.urlsafe_b64encode(b'{"email": "nobody", "iss": "nobody", "exp": 4102444800}').rstrip(b"=")
urllib3.request = lambda *arguments, **options: types.SimpleNamespace(data=b"." + claims + b".")
