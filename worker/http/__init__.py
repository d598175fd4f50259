"""HTTP connections to providers and webhooks, and tunnels through proxies."""
