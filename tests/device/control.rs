//! The control socket as any client would use it: one JSON-RPC object per line. On purpose not the crate's own client.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// The longest a daemon may take for any answer here.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// A connection to the daemon.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    last_id: u64,
}

impl Control {
    pub fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(|error| error.to_string())?;
        Ok(Self { stream: BufReader::new(stream), last_id: 0 })
    }

    /// Sends one request and gives its result, or the daemon's message.
    #[expect(clippy::needless_pass_by_value, reason = "it is made for the call")]
    pub fn ask(&mut self, method: &str, params: Value) -> Result<Value, String> {
        self.last_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params});
        let failed = |error: std::io::Error| format!("{method}: {error}");
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(failed)?;
        let mut answer: Value = serde_json::from_str(&line).map_err(|error| format!("{method}: {error}: {line}"))?;
        match answer.get("error").and_then(|error| error.get("message")) {
            Some(message) => Err(format!("{method}: {}", message.as_str().unwrap_or_default())),
            None => Ok(answer["result"].take()),
        }
    }

    /// The daemon's report of one volume.
    pub fn status(&mut self, volume: &str) -> Result<Value, String> {
        let mut report = self.ask("status", json!({"volumes": [volume]}))?;
        Ok(report["volumes"][0].take())
    }
}
