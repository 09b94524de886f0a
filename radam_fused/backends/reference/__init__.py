"""The backend on plain torch operations, which all others are compared with bit for bit."""
