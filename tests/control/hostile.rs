//! Clients that are slow, huge, many, silent or gone: each costs the daemon little, and others are served meanwhile.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use farpoint::control::rpc::LINE_BYTES_MAX;
use farpoint::control::server::Limits;

use super::fake::{self, PROMPT, answer};

const STATUS: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n";
const EVENTS: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"events\"}\n";
const FLOOD: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"events\",\"params\":{\"statistics\":true}}\n";
const WAIT_FOREVER: &[u8] =
    b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"wait\",\"params\":{\"volumes\":[\"forever\"],\"until\":\"normal\"}}\n";

fn impatient() -> Limits {
    let time = Duration::from_millis(300);
    Limits { line_time_max: time, write_time_max: time, ..Limits::default() }
}

/// Reads to the end; whether the daemon hung up at all is the question.
fn assert_hung_up(mut stream: &UnixStream) {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PROMPT, "{what}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_line_that_is_begun_and_not_finished_is_cut_off() {
    let daemon = fake::daemon_with(impatient(), |_| {});
    let mut slow = daemon.connect();
    let begun = Instant::now();
    // One byte at a time does not win more time.
    while begun.elapsed() < PROMPT && slow.write_all(b"{").is_ok() {
        sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < PROMPT);
    let refusal = answer(&slow);
    assert!(refusal["error"]["message"].as_str().expect("message").contains("not finished within"), "{refusal}");
    assert_hung_up(&slow);
    daemon.assert_serves();
}

#[test]
fn a_silent_client_may_stay() {
    let daemon = fake::daemon_with(impatient(), |_| {});
    let mut silent = daemon.connect();
    sleep(Duration::from_millis(900));
    silent.write_all(STATUS).expect("still connected");
    assert!(answer(&silent)["result"].is_object());
}

#[test]
fn a_line_that_is_too_long_is_refused_and_one_at_the_limit_is_not() {
    let daemon = fake::daemon();
    let mut line = br#"{"jsonrpc":"2.0","id":1,"method":"status"}"#.to_vec();
    line.resize(LINE_BYTES_MAX, b' ');
    assert!(daemon.ask(&line)["result"].is_object());
    line.push(b' ');
    let refusal = daemon.ask(&line);
    assert!(refusal["error"]["message"].as_str().expect("message").contains("longer than 65536"), "{refusal}");
    let refusal = daemon.ask(&vec![b'x'; 8 << 20]);
    assert!(refusal["error"]["message"].as_str().expect("message").contains("longer than 65536"), "{refusal}");
    daemon.assert_serves();
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let daemon = fake::daemon_with(impatient(), |_| {});
    let mut deaf = daemon.connect();
    // Asks on without reading until the daemon, whose answers fill the socket, hangs up.
    let begun = Instant::now();
    while deaf.write_all(STATUS).is_ok() {
        assert!(begun.elapsed() < PROMPT, "still served after {:?}", begun.elapsed());
    }
    daemon.assert_serves();
}

#[test]
fn an_event_stream_that_is_not_read_ends() {
    let daemon = fake::daemon_with(impatient(), |_| {});
    let mut deaf = daemon.connect();
    deaf.write_all(FLOOD).expect("sent");
    sleep(Duration::from_secs(1));
    daemon.assert_serves();
    let mut received = Vec::new();
    deaf.read_to_end(&mut received).expect("the daemon hung up");
    assert!(received.len() < 4 << 20, "{} bytes were kept for a client that does not read", received.len());
}

#[test]
fn an_event_stream_that_breaks_off_says_so() {
    let daemon = fake::daemon();
    let mut stream = daemon.connect();
    stream.write_all(FLOOD).expect("sent");
    let last = BufReader::new(&stream).lines().map(|line| line.expect("a line")).find(|line| line.contains("\"id\":1"));
    let last = last.expect("a reply ends the stream");
    assert!(last.contains("the event stream broke off"), "{last}");
    // The connection is good for more.
    stream.write_all(STATUS).expect("sent");
    assert!(answer(&stream)["result"].is_object());
}

#[test]
fn a_hundred_clients_get_an_answer_or_a_refusal() {
    let daemon = fake::daemon();
    let mut clients: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
    let mut served = 0;
    for client in &mut clients {
        // Whoever was turned away may find the connection closed.
        let _ = client.write_all(STATUS);
        let answer = answer(client);
        if answer["result"].is_object() {
            served += 1;
        } else {
            let message = answer["error"]["message"].as_str().expect("message");
            assert!(message.contains("too many control clients"), "{message}");
        }
    }
    let expected = if nix::unistd::geteuid().is_root() { 64 } else { 56 };
    assert_eq!(served, expected);
    drop(clients);
    eventually("places are given back", || {
        let mut stream = daemon.connect();
        let _ = stream.write_all(STATUS);
        answer(&stream)["result"].is_object()
    });
}

#[test]
fn a_wait_ends_with_its_client() {
    let daemon = fake::daemon();
    let mut waiting = daemon.connect();
    waiting.write_all(WAIT_FOREVER).expect("sent");
    daemon.assert_serves();
    assert_eq!(daemon.dropped_waits.load(Ordering::SeqCst), 0);
    drop(waiting);
    eventually("the wait is dropped", || daemon.dropped_waits.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_wait_ends_with_its_client_even_if_that_sent_more() {
    let daemon = fake::daemon();
    let mut waiting = daemon.connect();
    waiting.write_all(WAIT_FOREVER).and_then(|()| waiting.write_all(STATUS)).expect("sent");
    daemon.assert_serves();
    drop(waiting);
    eventually("the wait is dropped", || daemon.dropped_waits.load(Ordering::SeqCst) == 1);
}

#[test]
fn an_event_stream_ends_with_its_client() {
    let daemon = fake::daemon_with(Limits { clients_max: 1, others_max: 1, ..Limits::default() }, |_| {});
    let mut stream = daemon.connect();
    stream.write_all(EVENTS).expect("sent");
    assert_eq!(answer(&stream)["params"]["name"], "vol0");
    drop(stream);
    eventually("the only place is given back", || daemon.ask(&STATUS[..STATUS.len() - 1])["result"].is_object());
}

#[test]
fn a_client_that_has_said_its_last_word_still_gets_its_answer() {
    let daemon = fake::daemon();
    for line in [STATUS, &STATUS[..STATUS.len() - 1]] {
        let mut stream = daemon.connect();
        stream.write_all(line).expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        assert!(answer(&stream)["result"].is_object());
        assert_hung_up(&stream);
    }
}

#[test]
fn requests_sent_at_once_are_answered_in_order() {
    let daemon = fake::daemon();
    let mut stream = daemon.connect();
    let line = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"up","params":{{"volume":"v"}}}}"#) + "\r\n\n";
    let lines: String = (0..200).map(line).collect();
    stream.write_all(lines.as_bytes()).expect("sent");
    let mut answers = BufReader::new(&stream).lines();
    for id in 0..200 {
        let line = answers.next().expect("a line").expect("in time");
        assert!(line.contains(&format!("\"id\":{id},")), "{line}");
    }
}

#[test]
fn a_flood_of_garbage_stalls_nobody() {
    let daemon = fake::daemon_with(impatient(), |_| {});
    let socket = daemon.socket();
    let vandals: Vec<_> = (0_u8..20)
        .map(|seed| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let begun = Instant::now();
                let mut byte = seed;
                while begun.elapsed() < Duration::from_secs(2) {
                    let Ok(mut stream) = UnixStream::connect(&socket) else { continue };
                    stream.set_write_timeout(Some(Duration::from_millis(200))).expect("timeout");
                    byte = byte.wrapping_mul(167).wrapping_add(13);
                    let _ =
                        stream.write_all(&vec![byte; usize::from(byte) * 64]).and_then(|()| stream.write_all(b"\n"));
                }
            })
        })
        .collect();
    for _ in 0..20 {
        daemon.assert_serves();
        sleep(Duration::from_millis(50));
    }
    for vandal in vandals {
        vandal.join().expect("a vandal");
    }
    daemon.assert_serves();
}
