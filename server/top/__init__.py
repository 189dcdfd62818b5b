"""`adapterd top`: two looks at a server's metrics, and what happened between them."""
