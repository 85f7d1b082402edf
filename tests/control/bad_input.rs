//! Missing, wrong, oversized and hostile input of every verb, at the parser and again through a real socket: always one
//! clear line and the documented codes, never anything done.

use farpoint::control::rpc;
use serde_json::Value;

use super::fake;

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;

/// A line, the code it is refused with, and a part of the message.
type Case = (Vec<u8>, i32, &'static str);

fn with_params(method: &str, params: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#).into_bytes()
}

/// Lines that are wrong whatever the verb.
fn envelopes() -> Vec<Case> {
    let case = |line: &str, code, part| (line.as_bytes().to_vec(), code, part);
    let deep = |count: usize| format!("{}{}", "[".repeat(count), "]".repeat(count));
    let deep_id = format!(r#"{{"jsonrpc":"2.0","method":"status","id":{}}}"#, deep(20_000));
    let deep_params =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"status","params":{{"volumes":{}}}}}"#, deep(20_000));
    let long_id = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"status"}}"#, "x".repeat(200));
    let long_method = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{}"}}"#, "m".repeat(60_000));
    vec![
        case("nonsense", PARSE_ERROR, "not JSON"),
        case("{", PARSE_ERROR, "not JSON"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"status"} trailing"#, PARSE_ERROR, "not JSON"),
        (b"\xff\xfe\x00".to_vec(), PARSE_ERROR, "not UTF-8"),
        (vec![0; 100], PARSE_ERROR, "not JSON"),
        case("GET / HTTP/1.1\r", PARSE_ERROR, "not JSON"),
        case("[]", INVALID_REQUEST, "batches are not supported"),
        case(r#"[{"jsonrpc":"2.0","id":1,"method":"status"}]"#, INVALID_REQUEST, "batches are not supported"),
        case(&deep(30_000), INVALID_REQUEST, "batches"),
        case(&deep_id, INVALID_REQUEST, "the id is neither"),
        case(&deep_params, INVALID_PARAMS, "expected a string"),
        case("null", INVALID_REQUEST, "not a JSON object"),
        case("1e999999", INVALID_REQUEST, "not a JSON object"),
        case("{}", INVALID_REQUEST, "jsonrpc"),
        case(r#"{"id":1,"method":"status"}"#, INVALID_REQUEST, "jsonrpc"),
        case(r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#, INVALID_REQUEST, "jsonrpc"),
        case(r#"{"jsonrpc":2.0,"id":1,"method":"status"}"#, INVALID_REQUEST, "jsonrpc"),
        case(r#"{"jsonrpc":"2.0","id":1}"#, INVALID_REQUEST, "no method"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":7}"#, INVALID_REQUEST, "not a string"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"Status"}"#, METHOD_NOT_FOUND, "no method \"Status\""),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"format\u001b[2J"}"#, METHOD_NOT_FOUND, "\\u{1b}"),
        case(&long_method, METHOD_NOT_FOUND, "mmm..."),
        case(r#"{"jsonrpc":"2.0","method":"status"}"#, INVALID_REQUEST, "no id"),
        case(r#"{"jsonrpc":"2.0","id":null,"method":"status"}"#, INVALID_REQUEST, "no id"),
        case(r#"{"jsonrpc":"2.0","id":1.5,"method":"status"}"#, INVALID_REQUEST, "the id is neither"),
        case(r#"{"jsonrpc":"2.0","id":99999999999999999999,"method":"status"}"#, INVALID_REQUEST, "the id is neither"),
        case(r#"{"jsonrpc":"2.0","id":{},"method":"status"}"#, INVALID_REQUEST, "the id is neither"),
        case(&long_id, INVALID_REQUEST, "the id is longer"),
        case(r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"status"}"#, INVALID_REQUEST, "duplicate field"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"status","method":"delete"}"#, INVALID_REQUEST, "duplicate field"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"status","sudo":true}"#, INVALID_REQUEST, "unknown field `sudo`"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"status","params":[]}"#, INVALID_PARAMS, "not an object"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"up","params":["vol0"]}"#, INVALID_PARAMS, "not an object"),
        case(r#"{"jsonrpc":"2.0","id":1,"method":"up","params":"vol0"}"#, INVALID_PARAMS, "not an object"),
    ]
}

/// Wrong values for the name or names of a verb that takes them.
fn names(method: &'static str, one: bool, rest: &str) -> Vec<Case> {
    let key = if one { "volume" } else { "volumes" };
    let wrap = |value: &str| {
        let value = if one { value.to_owned() } else { format!("[{value}]") };
        with_params(method, &format!(r#"{{"{key}":{value}{rest}}}"#))
    };
    let mut cases: Vec<Case> = vec![
        (wrap("1"), INVALID_PARAMS, "expected a string"),
        (wrap("null"), INVALID_PARAMS, "expected a string"),
        (wrap(r#"{"a":"b"}"#), INVALID_PARAMS, "expected a string"),
        (wrap(r#""""#), INVALID_PARAMS, "is empty"),
        (wrap(r#""../../etc/shadow""#), INVALID_PARAMS, "starts with '.'"),
        (wrap(r#""-rf""#), INVALID_PARAMS, "starts with"),
        (wrap(r#""/dev/sda""#), INVALID_PARAMS, "characters other than"),
        (wrap(r#""a\u0000b""#), INVALID_PARAMS, "characters other than"),
        (wrap(r#""a\nb""#), INVALID_PARAMS, "characters other than"),
        (wrap(r#""\u202evol""#), INVALID_PARAMS, "characters other than"),
        (wrap(&format!("\"{}\"", "x".repeat(65))), INVALID_PARAMS, "longer than 64"),
        (wrap(&format!("\"{}\"", "x".repeat(60_000))), INVALID_PARAMS, "longer than 64"),
        (with_params(method, &format!(r#"{{"{key}s":1}}"#)), INVALID_PARAMS, "unknown field"),
        (with_params(method, &format!(r#"{{"{key}":"v","{key}":"v"}}"#)), INVALID_PARAMS, "params of"),
    ];
    if !one {
        let many: Vec<_> = (0..65).map(|n| format!("\"v{n}\"")).collect();
        cases.push((wrap(&many.join(",")), INVALID_PARAMS, "at most 64"));
        cases.push((wrap(r#""a","b","a""#), INVALID_PARAMS, "named twice"));
        cases.push((
            with_params(method, &format!(r#"{{"volumes":"a"{rest}}}"#)),
            INVALID_PARAMS,
            "expected a sequence",
        ));
    }
    cases
}

fn verbs() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["create", "delete", "up", "down"] {
        cases.extend(names(method, true, ""));
        cases.push((with_params(method, "{}"), INVALID_PARAMS, "missing field `volume`"));
        cases.push((with_params(method, r#"{"volume":"v","primary":"/dev/sda"}"#), INVALID_PARAMS, "unknown field"));
    }
    for method in ["create", "down"] {
        cases.push((with_params(method, r#"{"volume":"v","force":"yes"}"#), INVALID_PARAMS, "expected a boolean"));
        cases.push((with_params(method, r#"{"volume":"v","force":1}"#), INVALID_PARAMS, "expected a boolean"));
    }
    for device in
        ["", "/dev/sda", "/dev/ublkb", "/dev/ublkb-1", "/dev/ublkb4294967296", "../dev/ublkb0", "/dev/ublkb0\\n"]
    {
        let params = format!(r#"{{"device":"{device}"}}"#);
        cases.push((with_params("remove-device", &params), INVALID_PARAMS, "is no ublk device"));
    }
    cases.push((with_params("devices", r#"{"volumes":[]}"#), INVALID_PARAMS, "unknown field"));
    for method in ["start", "run", "increment-complete", "abort", "pause", "resume"] {
        cases.extend(names(method, false, ""));
        cases.push((with_params(method, "{}"), INVALID_PARAMS, "missing field `volumes`"));
        cases.push((with_params(method, r#"{"volumes":[]}"#), INVALID_PARAMS, "no volume is named"));
    }
    cases.extend(names("status", false, ""));
    cases.extend(names("wait", false, r#","until":"in-sync""#));
    cases.extend(names("set", false, r#","settings":{"run_timer_ms":5}"#));
    let wait = |rest: &str| with_params("wait", &format!(r#"{{"volumes":["v"]{rest}}}"#));
    let set = |settings: &str| with_params("set", &format!(r#"{{"volumes":["v"],"settings":{settings}}}"#));
    let start = |value: &str| with_params("start", &format!(r#"{{"volumes":["v"],"run_timer_ms":{value}}}"#));
    cases.extend([
        (wait(""), INVALID_PARAMS, "missing field `until`"),
        (wait(r#","until":"later""#), INVALID_PARAMS, "unknown variant `later`"),
        (wait(r#","until":"normal","timeout_ms":0"#), INVALID_PARAMS, "timeout_ms: 0 is not allowed"),
        (wait(r#","until":"normal","timeout_ms":1e3"#), INVALID_PARAMS, "expected u64"),
        (wait(r#","until":"normal","timeout_ms":99999999999999999999"#), INVALID_PARAMS, "expected u64"),
        (start("0"), INVALID_PARAMS, "run_timer_ms: 0 is not allowed; it must be 1 to 60000"),
        (start("60001"), INVALID_PARAMS, "run_timer_ms: 60001 is not allowed"),
        (start("-1"), INVALID_PARAMS, "expected u64"),
        (start("1e400"), INVALID_PARAMS, "out of range"),
        (start("\"5\""), INVALID_PARAMS, "expected u64"),
        (with_params("set", r#"{"volumes":["v"]}"#), INVALID_PARAMS, "missing field `settings`"),
        (set("{}"), INVALID_PARAMS, "no setting is named"),
        (set(r#"{"track_size":4096}"#), INVALID_PARAMS, "unknown field `track_size`"),
        (set(r#"{"run_timer_ms":60001}"#), INVALID_PARAMS, "run_timer_ms: 60001 is not allowed"),
        (set(r#"{"increment_timer_ms":999}"#), INVALID_PARAMS, "increment_timer_ms: 999 is not allowed"),
        (set(r#"{"increment_timer_ms":86400001}"#), INVALID_PARAMS, "increment_timer_ms: 86400001 is not allowed"),
        (set(r#"{"autostart":"yes"}"#), INVALID_PARAMS, "expected a boolean"),
        (set(r#"{"collision_wait_ms":0}"#), INVALID_PARAMS, "collision_wait_ms: 0 is not allowed"),
        (set(r#"{"bandwidth_limit":1}"#), INVALID_PARAMS, "bandwidth_limit: 1 is not allowed; it must be 0 or 65536"),
        (set(r#"{"bandwidth_limit":18446744073709551615}"#), INVALID_PARAMS, "bandwidth_limit: 18446744073709551615"),
        (set(r#"{"bandwidth_limit":"10MiB"}"#), INVALID_PARAMS, "expected u64"),
        (set(r#"{"collision_policy":"drop"}"#), INVALID_PARAMS, "unknown variant `drop`"),
        (with_params("events", r#"{"now":1}"#), INVALID_PARAMS, "expected a boolean"),
        (with_params("events", r#"{"volumes":["v"]}"#), INVALID_PARAMS, "unknown field"),
    ]);
    cases
}

fn assert_refusal(refusal: &Value, (line, code, part): &Case) {
    let line = String::from_utf8_lossy(line.get(..200).unwrap_or(line));
    let message = refusal["error"]["message"].as_str().unwrap_or_else(|| panic!("{line}: {refusal}"));
    assert_eq!(refusal["error"]["code"], *code, "{line}: {refusal}");
    assert_eq!(refusal["error"]["data"]["kind"], "usage", "{line}: {refusal}");
    assert_eq!(refusal["error"]["data"]["exit_code"], 2, "{line}: {refusal}");
    assert!(message.contains(part), "{line}: {message}");
    assert!(message.len() < 600 && !message.chars().any(char::is_control), "{line}: {message}");
}

#[test]
fn the_parser_refuses_bad_input_in_one_clear_line() {
    for case in envelopes().into_iter().chain(verbs()) {
        let refusal = rpc::parse(&case.0).expect_err(&String::from_utf8_lossy(&case.0));
        let line = rpc::refusal_line(&refusal);
        assert_refusal(&serde_json::from_slice(&line).expect("JSON"), &case);
    }
    let long = rpc::parse(&vec![b' '; rpc::LINE_BYTES_MAX + 1]).expect_err("too long");
    assert!(long.message.contains("longer than 65536 bytes"), "{}", long.message);
}

#[test]
fn the_socket_refuses_bad_input_in_one_clear_line() {
    let daemon = fake::daemon();
    for case in envelopes().into_iter().chain(verbs()) {
        assert_refusal(&daemon.ask(&case.0), &case);
    }
    daemon.assert_serves();
}

#[test]
fn a_refusal_names_the_request_it_belongs_to() {
    let daemon = fake::daemon();
    let refusal = daemon.ask(br#"{"jsonrpc":"2.0","id":"seven","method":"nothing"}"#);
    assert_eq!(refusal["id"], "seven");
    assert_eq!(daemon.ask(br#"{"jsonrpc":"2.0","id":-7,"method":"up","params":{}}"#)["id"], -7);
    assert_eq!(daemon.ask(b"nonsense")["id"], Value::Null);
}

#[test]
fn failures_of_the_controller_have_their_codes() {
    let daemon = fake::daemon();
    let table = [
        ("missing", -32003, "not-found", 3),
        ("busy", -32004, "wrong-state", 4),
        ("broken", -32007, "io", 7),
        ("precious", -32008, "unsafe", 8),
        ("odd", -32001, "failed", 1),
        ("mute", -32003, "not-found", 3),
    ];
    for (volume, code, kind, exit_code) in table {
        let answer = daemon.ask(&with_params("up", &format!(r#"{{"volume":"{volume}"}}"#)));
        assert_eq!(answer["error"]["code"], code, "{answer}");
        assert_eq!(answer["error"]["data"]["kind"], kind, "{answer}");
        assert_eq!(answer["error"]["data"]["exit_code"], exit_code, "{answer}");
    }
}
