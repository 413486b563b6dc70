"""HTTP: one sub-app per mount. Reads requests, calls the service, writes answers; decides nothing about drawing or money."""
