"""`reasoner view RUN`: a page on this machine to read rollouts in, live while the run goes on.

`index` keeps what is filtered and searched in DuckDB, `tokens` shows one chain token by token, `changes`
compares two evaluations, `server` answers over loopback HTTP. The page itself is templates/view.*.
"""
