"""What an administrator signs, and the CA that vouches for administrators."""
