"""HTTP/1.1 on raw protocols: the door callers come in by, and the pooled connections to upstreams."""
