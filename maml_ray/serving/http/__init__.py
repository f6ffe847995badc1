"""Answer HTTP requests: routes, bodies, and who may send them."""
