"""Private: one tracker for many hosts, on etcd. Imported only where `trackd[fleet]` is used."""
