"""redis-py against a running server; called by clients.sh with the port."""

import sys
import threading

import redis

port = int(sys.argv[1])


def check(protocol):
    r = redis.Redis(port=port, protocol=protocol, decode_responses=True, client_name="check")
    r.flushall()
    assert r.ping()
    assert r.set("a", "1") and r.get("a") == "1"
    assert r.set("a", "2", nx=True) is None
    assert r.set("b", "3", ex=100) and 0 < r.ttl("b") <= 100
    assert r.incr("n", 5) == 5 and r.decr("n") == 4
    assert r.incrbyfloat("f", 1.5) == 1.5
    assert r.mset({"x": 1, "y": 2}) and r.mget("x", "y", "z") == ["1", "2", None]
    assert r.append("x", "23") == 3 and r.getrange("x", 0, 1) == "12" and r.strlen("x") == 3
    assert r.delete("x", "y", "nothing") == 2 and r.exists("x") == 0
    assert r.type("a") == "string" and r.client_getname() == "check"
    assert int(r.info()["connected_clients"]) >= 1
    assert r.config_get("maxclients")["maxclients"]
    assert "get" in r.command()

    with r.pipeline(transaction=False) as p:
        for i in range(1000):
            p.set(f"key:{i:04}", i)
        assert all(p.execute())
    assert sorted(r.scan_iter("key:*", count=17)) == [f"key:{i:04}" for i in range(1000)]
    assert r.execute_command("RANGE", "key:0998", "key:0999") == ["key:0998", "998", "key:0999", "999"]
    assert r.execute_command("PREFIX", "key:", "REV", "LIMIT", 1) == ["key:0999", "999"]
    assert r.execute_command("COUNTRANGE", "key:", "key:0499") == 500

    with r.pipeline(transaction=True) as p:
        p.set("t", 1).incr("t").get("t")
        assert p.execute() == [True, 2, "2"]

    def add():
        own = redis.Redis(port=port, protocol=protocol)
        for _ in range(50):
            own.transaction(lambda p: (p.multi(), p.incr("sum")), "sum")
        own.close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert r.get("sum") == "200", r.get("sum")

    # Bytes that are no text, and a value of some size.
    raw = redis.Redis(port=port, protocol=protocol)
    value = bytes(range(256)) * 4096
    assert raw.set(b"\x00\xff\r\n", value) and raw.get(b"\x00\xff\r\n") == value

    try:
        r.execute_command("NONSENSE")
        raise AssertionError("an unknown command was taken")
    except redis.ResponseError as e:
        assert str(e).startswith("unknown command 'NONSENSE'"), e
    with r.pipeline() as p:
        p.watch("a")
        r.set("a", "changed")
        p.multi()
        p.set("a", "lost")
        try:
            p.execute()
            raise AssertionError("WATCH saw nothing")
        except redis.WatchError:
            pass
    assert r.get("a") == "changed"
    r.close()


for protocol in (2, 3):
    check(protocol)
    print(f"redis-py {redis.__version__}, protocol {protocol}: passed")
