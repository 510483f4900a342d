"""What `scripts/bench` is made of: scenario files → rounds of servers and load clients in turn → judgements, tables, charts.

    scenario    benches/scenarios/*.toml, read and checked whole before anything starts
    servers     the gateway and its peers: installed?, which version, started, stopped
    rounds      who is measured when; medians
    tree        the build that is measured, and its commit
    verdict     what the figures must be, and are
    pages       Markdown, CSV
    cluster     nodes, etcd and NATS on one machine, and what each of their threads costs: `scripts/scale`
    chart       SVG; the only part that needs more than Python's own library
"""
