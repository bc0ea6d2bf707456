"""The HTTP listener: metrics, a status page, health. Off unless `http` is set, and read-only.

It is an ordinary client inside the daemon's own process: it asks over the daemon's endpoint as
every agent does. So nothing that it shows is uncommitted, and no viewer can hold the one writer.

    address.py    where it may listen: loopback addresses and unix sockets
    app.py        what it answers: a WSGI application of plain functions
    views.py      the data of the page, made once for all viewers
    listener.py   the sockets and threads that serve it
    page.html page.css words.js page.js    the page, which is sent as one file
"""
