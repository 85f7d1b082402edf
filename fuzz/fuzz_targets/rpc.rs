//! Any bytes at all are one line to the parser of the control socket: it accepts only what is inside every limit, and
//! refuses the rest in one short line of JSON. The client's parser must survive them too.
#![no_main]

use farpoint::control::rpc::{self, Command};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    match rpc::parse(line) {
        Ok(Command { id, request }) => {
            assert_eq!(request.check(), Ok(()));
            let again = rpc::request_line(&id, &request);
            // Only whitespace and escapes can make the canonical form longer than what was sent.
            if again.len() <= rpc::LINE_BYTES_MAX {
                assert_eq!(rpc::parse(again.trim_ascii_end()), Ok(Command { id, request }));
            }
        }
        Err(refusal) => {
            let answer = rpc::refusal_line(&refusal);
            assert!(answer.len() < 8192);
            assert_eq!(answer.iter().position(|byte| *byte == b'\n'), Some(answer.len() - 1));
            assert!(!refusal.message.is_empty() && !refusal.message.chars().any(char::is_control));
            serde_json::from_slice::<serde_json::Value>(&answer).expect("a refusal is JSON");
        }
    }
    let _ = rpc::parse_message(line);
});
