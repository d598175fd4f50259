"""Hosts that two parsers read differently."""

#: Hosts that are 127.0.0.1 or `localhost` for some library or proxy, and not for others.
AMBIGUOUS = [
    *("2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0x7f.1", "0", "127.0.0.1."),
    *("\uff10x7f000001", "0\uff587f000001", "\U0001d7d8x7f.1", "127\u30020\u30020\uff611"),
    *("\uff11\uff12\uff17.1", "\u2460\u2461\u2466.0.0.1", "0\ufe0fx7f000001", "1\u034f27.1"),
    *("loc%61lhost", "localhost%2e", "127.0.0.1%23.example.com", "127.0.0.1%00.example.com"),
]
