"""Back ends: what executes the graphs of a bundle. Each is one file beside this one."""
