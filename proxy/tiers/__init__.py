"""The services that can answer a call: an upstream over HTTP, or the local models and indexes."""
