"""Signs requests with an administrator's key, from a file or an ssh-agent; reads keys named on the command line."""
