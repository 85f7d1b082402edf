#!/usr/bin/python3
"""A bank in SQLite for scripts/demo: a writer that never rests, and the proof that nothing is missing or torn.

run DB ACK       moves money between accounts, one transaction after the other, until SIGTERM; after each commit the number of
                 the transaction and the longest commit so far (ms) go to the file ACK
check DB         verifies the ledger's chain and the accounts against it; prints the last transaction's number
"""

import hashlib
import os
import random
import signal
import sqlite3
import sys
import time

ACCOUNTS = 500
OPENING_BALANCE = 1000


def link(previous, seq, payer, payee, amount):
    """The running checksum: each row's depends on all rows before it."""
    return hashlib.sha256(f"{previous} {seq} {payer} {payee} {amount}".encode()).hexdigest()


def create(path):
    bank = sqlite3.connect(path, isolation_level=None)
    # Full: a commit that returns is on the device.
    bank.execute("PRAGMA journal_mode = WAL")
    bank.execute("PRAGMA synchronous = FULL")
    bank.execute("BEGIN")
    bank.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
    bank.execute("CREATE TABLE ledger (seq INTEGER PRIMARY KEY, payer, payee, amount, chain TEXT NOT NULL, note BLOB)")
    bank.executemany("INSERT INTO account VALUES (?, ?)", ((i, OPENING_BALANCE) for i in range(ACCOUNTS)))
    bank.execute("COMMIT")
    return bank


def run(path, ack_path):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    bank = create(path)
    ack = os.open(ack_path, os.O_WRONLY | os.O_CREAT, 0o644)
    dice = random.Random(1)
    chain, seq, longest = "", 0, 0.0
    while not stopped:
        seq += 1
        payer, payee = dice.sample(range(ACCOUNTS), 2)
        amount = dice.randint(1, 100)
        chain = link(chain, seq, payer, payee, amount)
        began = time.monotonic()
        bank.execute("BEGIN IMMEDIATE")
        bank.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, payer))
        bank.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, payee))
        note = dice.randbytes(dice.randint(10, 2000))
        bank.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", (seq, payer, payee, amount, chain, note))
        bank.execute("COMMIT")
        longest = max(longest, (time.monotonic() - began) * 1000)
        # One write of one length, so that a reader never sees half of it.
        os.pwrite(ack, f"{seq:012d} {longest:012.1f}\n".encode(), 0)
    bank.close()


def check(path):
    bank = sqlite3.connect(path)
    balances = [OPENING_BALANCE] * ACCOUNTS
    chain, last = "", 0
    for seq, payer, payee, amount, stored in bank.execute("SELECT seq, payer, payee, amount, chain FROM ledger ORDER BY seq"):
        chain = link(chain, seq, payer, payee, amount)
        if seq != last + 1 or stored != chain:
            sys.exit(f"the ledger's chain is broken at transaction {last + 1}")
        balances[payer] -= amount
        balances[payee] += amount
        last = seq
    if [row[0] for row in bank.execute("SELECT balance FROM account ORDER BY id")] != balances:
        sys.exit("the accounts are not what the ledger says")
    if sum(balances) != ACCOUNTS * OPENING_BALANCE:
        sys.exit("money was made or lost")
    print(last, sum(balances))


if __name__ == "__main__":
    {"run": run, "check": check}[sys.argv[1]](*sys.argv[2:])
