//! The lines of the control protocol: bytes to checked requests and back. Pure functions without I/O, which for no
//! input panic, recurse without bound or answer with more than a short line. The server and the client both use them.
//!
//! | Code | Kind | Exit code | Meaning |
//! |---|---|---|---|
//! | -32700 | usage | 2 | the line is not JSON |
//! | -32600 | usage | 2 | not a request: not one object, no id, no method, the line too long or too slow |
//! | -32601 | usage | 2 | there is no such method |
//! | -32602 | usage | 2 | a parameter is missing, unknown, of the wrong type or out of range |
//! | -32001 | failed | 1 | anything without a kind of its own |
//! | -32003 | not-found | 3 | no such volume, device or file, or the daemon is not running |
//! | -32004 | wrong-state | 4 | for example `run` without `start` |
//! | -32005 | timed-out | 5 | the time given to `wait` is over |
//! | -32006 | permission | 6 | the peer has not the right |
//! | -32007 | io | 7 | a device or file failed |
//! | -32008 | unsafe | 8 | refused unless forced |

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::controller::api::{Event, Failure, FailureKind, Request, Response};
use crate::controller::limits;

/// Longest line a client may send, without its end.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Longest text a client may choose as an id.
const ID_BYTES_MAX: usize = 128;
/// Most characters of a message in an error object.
const MESSAGE_CHARS_MAX: usize = 500;

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const SERVER_ERROR: i32 = -32000;

/// What a client calls its request; the answer repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    Number(i64),
    Text(String),
}

/// A request that is well-formed and inside all limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub id: Id,
    pub request: Request,
}

/// Why a line is no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Absent when the line does not tell.
    pub id: Option<Id>,
    pub code: i32,
    pub message: String,
}

impl Refusal {
    /// A refusal of a whole connection or line, before anything in it was understood.
    pub fn of_line(message: impl Into<String>) -> Self {
        Self { id: None, code: INVALID_REQUEST, message: message.into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Reads one line, its end taken off.
pub fn parse(line: &[u8]) -> Result<Command, Refusal> {
    let refuse = |code, message: String| Refusal { id: None, code, message };
    if line.len() > LINE_BYTES_MAX {
        let message = format!("the line is longer than {LINE_BYTES_MAX} bytes; send one short object per line");
        return Err(refuse(INVALID_REQUEST, message));
    }
    let text = std::str::from_utf8(line)
        .map_err(|_| refuse(PARSE_ERROR, "the line is not UTF-8; send one JSON object per line".to_owned()))?;
    let raw: &RawValue = serde_json::from_str(text)
        .map_err(|error| refuse(PARSE_ERROR, format!("the line is not JSON: {}", reason(&error))))?;
    match raw.get().as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => {
            let message = "batches are not supported; send one object per line".to_owned();
            return Err(refuse(INVALID_REQUEST, message));
        }
        _ => return Err(refuse(INVALID_REQUEST, "the line is not a JSON object; send one per line".to_owned())),
    }
    let envelope: Envelope = serde_json::from_str(raw.get())
        .map_err(|error| refuse(INVALID_REQUEST, format!("the object is not a request: {}", reason(&error))))?;
    let id = envelope.id.map(parse_id).transpose()?;
    match command(&envelope) {
        Ok(request) => {
            let missing = || "the request has no id; give it one, a string or a whole number".to_owned();
            Ok(Command { id: id.ok_or_else(|| refuse(INVALID_REQUEST, missing()))?, request })
        }
        Err((code, message)) => Err(Refusal { id, code, message }),
    }
}

fn parse_id(raw: &RawValue) -> Result<Id, Refusal> {
    match serde_json::from_str(raw.get()) {
        Ok(Id::Text(text)) if text.len() > ID_BYTES_MAX => {
            Err(Refusal::of_line(format!("the id is longer than {ID_BYTES_MAX} bytes; choose a shorter one")))
        }
        Ok(id) => Ok(id),
        Err(_) => Err(Refusal::of_line("the id is neither a string nor a whole number; give it one")),
    }
}

fn command(envelope: &Envelope) -> Result<Request, (i32, String)> {
    if envelope.jsonrpc.is_none_or(|version| version.get() != "\"2.0\"") {
        return Err((INVALID_REQUEST, "\"jsonrpc\" is not \"2.0\"; say \"jsonrpc\":\"2.0\"".to_owned()));
    }
    let Some(method) = envelope.method else {
        return Err((INVALID_REQUEST, "the request has no method; name one, for example \"status\"".to_owned()));
    };
    let method: String = serde_json::from_str(method.get())
        .map_err(|_| (INVALID_REQUEST, "the method is not a string; name one, for example \"status\"".to_owned()))?;
    let params = envelope.params.map_or("{}", RawValue::get);
    if !params.starts_with('{') {
        return Err((INVALID_PARAMS, "the params are not an object; name each parameter".to_owned()));
    }
    let request = request(&method, params)?;
    request.check().map_err(|failure| (INVALID_PARAMS, failure.message))?;
    Ok(request)
}

fn request(method: &str, params: &str) -> Result<Request, (i32, String)> {
    Ok(match method {
        "create" => Request::Create(typed(method, params)?),
        "delete" => Request::Delete(typed(method, params)?),
        "up" => Request::Up(typed(method, params)?),
        "down" => Request::Down(typed(method, params)?),
        "status" => Request::Status(typed(method, params)?),
        "devices" => Request::Devices(typed(method, params)?),
        "remove-device" => Request::RemoveDevice(typed(method, params)?),
        "start" => Request::Start(typed(method, params)?),
        "run" => Request::Run(typed(method, params)?),
        "increment-complete" => Request::IncrementComplete(typed(method, params)?),
        "abort" => Request::Abort(typed(method, params)?),
        "wait" => Request::Wait(typed(method, params)?),
        "pause" => Request::Pause(typed(method, params)?),
        "resume" => Request::Resume(typed(method, params)?),
        "set" => Request::Set(typed(method, params)?),
        "events" => Request::Events(typed(method, params)?),
        _ => {
            let message = format!("there is no method \"{}\"; see farpoint(8)", limits::quote(method));
            return Err((METHOD_NOT_FOUND, message));
        }
    })
}

fn typed<T: DeserializeOwned>(method: &str, params: &str) -> Result<T, (i32, String)> {
    serde_json::from_str(params).map_err(|error| (INVALID_PARAMS, format!("params of {method}: {}", reason(&error))))
}

/// What serde has to say, bounded, and without the place, which means nothing to somebody who sent one line.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    limits::shorten(text, MESSAGE_CHARS_MAX / 2)
}

#[derive(Serialize)]
struct Reply<'a, T> {
    jsonrpc: &'static str,
    id: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorObject>,
}

#[derive(Serialize, Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: i32,
    message: String,
    data: Option<ErrorDetail>,
}

#[derive(Serialize, Deserialize)]
struct ErrorDetail {
    kind: FailureKind,
    exit_code: u8,
}

impl ErrorObject {
    fn new(code: i32, kind: FailureKind, message: &str) -> Self {
        let message = limits::shorten(message, MESSAGE_CHARS_MAX);
        Self { code, message, data: Some(ErrorDetail { kind, exit_code: kind.exit_code() }) }
    }
}

/// The error code of a failure that the controller answered with.
fn error_code(kind: FailureKind) -> i32 {
    match kind {
        FailureKind::Usage => INVALID_PARAMS,
        _ => SERVER_ERROR - i32::from(kind.exit_code()),
    }
}

/// The line that answers the request `id`.
pub fn reply_line(id: &Id, answer: Result<&Response, &Failure>) -> Vec<u8> {
    let (result, error) = match answer {
        Ok(response) => (Some(response), None),
        Err(failure) => (None, Some(ErrorObject::new(error_code(failure.kind), failure.kind, &failure.message))),
    };
    line(&Reply { jsonrpc: "2.0", id: Some(id), result, error })
}

/// The line that refuses what is no command.
pub fn refusal_line(refusal: &Refusal) -> Vec<u8> {
    let error = ErrorObject::new(refusal.code, FailureKind::Usage, &refusal.message);
    line(&Reply::<()> { jsonrpc: "2.0", id: refusal.id.as_ref(), result: None, error: Some(error) })
}

/// The line that turns a connection away before any request.
pub fn failure_line(failure: &Failure) -> Vec<u8> {
    let error = ErrorObject::new(error_code(failure.kind), failure.kind, &failure.message);
    line(&Reply::<()> { jsonrpc: "2.0", id: None, result: None, error: Some(error) })
}

/// An event is a notification: it has no id.
pub fn event_line(event: &Event) -> Vec<u8> {
    #[derive(Serialize)]
    struct Notification<'a> {
        jsonrpc: &'static str,
        method: &'static str,
        params: &'a Event,
    }
    line(&Notification { jsonrpc: "2.0", method: "event", params: event })
}

/// The line that asks for `request`.
pub fn request_line(id: &Id, request: &Request) -> Vec<u8> {
    #[derive(Serialize)]
    struct Asked<'a> {
        jsonrpc: &'static str,
        id: &'a Id,
        #[serde(flatten)]
        request: &'a Request,
    }
    line(&Asked { jsonrpc: "2.0", id, request })
}

fn line<T: Serialize>(object: &T) -> Vec<u8> {
    // Our own types have string keys and no failing serializers; should that ever change, the client is still answered.
    let mut line = serde_json::to_vec(object).unwrap_or_else(|_| {
        br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"the answer could not be written"}}"#.to_vec()
    });
    line.push(b'\n');
    line
}

/// What a client reads.
#[derive(Debug)]
pub enum Message {
    /// The id is absent when the server could not tell what was asked.
    Reply(Option<Id>, Result<Box<RawValue>, Failure>),
    Event(Event),
}

/// Reads one line of a server.
pub fn parse_message(line: &[u8]) -> Result<Message, Failure> {
    #[derive(Deserialize)]
    struct Received<'a> {
        id: Option<Id>,
        #[serde(borrow)]
        result: Option<&'a RawValue>,
        error: Option<ErrorObject>,
        method: Option<String>,
        params: Option<Event>,
    }
    let unreadable = |why: &str| {
        let message = format!("the daemon's answer cannot be read: {why}; are client and daemon of one version?");
        Failure::new(FailureKind::Failed, message)
    };
    let received: Received = serde_json::from_slice(line).map_err(|error| unreadable(&reason(&error)))?;
    match received {
        Received { error: Some(error), id, .. } => {
            let kind = error.data.map_or(FailureKind::Failed, |detail| detail.kind);
            let message = limits::shorten(&error.message, MESSAGE_CHARS_MAX * 2);
            Ok(Message::Reply(id, Err(Failure::new(kind, message))))
        }
        Received { result: Some(result), id, .. } => Ok(Message::Reply(id, Ok(result.to_owned()))),
        Received { method: Some(method), params: Some(event), .. } if method == "event" => Ok(Message::Event(event)),
        _ => Err(unreadable("it is neither a result nor an event")),
    }
}
