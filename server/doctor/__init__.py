"""`adapterd doctor`: what keeps a configuration from being served, and what to do. One function per check."""
