"""Is what a primary answers still right? Its searches and vectors are compared with what is known."""
