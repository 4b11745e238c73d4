"""A small bookshop of four HTTP services, in the spirit of Istio's bookinfo sample (the code is our own).

`python -m demo.bookinfo SERVICE --version VERSION --listen IP:PORT` runs one of them as a process of its own.
"""
